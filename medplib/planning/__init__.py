"""What a stage will need, computed from its configuration alone: parameters, memory per rank, arithmetic per step."""
