"""Published checkpoints <-> checkpoint folders of this project."""
