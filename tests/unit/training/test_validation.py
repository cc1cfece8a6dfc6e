from medplib.training.validation import ValidationScores


def test_a_collapsed_router_is_named():
    scores = ValidationScores()
    for task, share in (("grounding", 0.999), ("region", 0.995)):
        scores.add(f"router/{task}/grounding", share, 10)
        scores.add(f"router/{task}/vl", 1 - share, 10)
    assert scores.starved(("grounding", "vl")) == ["vl"]
    scores.add("router/vqa_closed/vl", 0.4, 10)
    assert scores.starved(("grounding", "vl")) == []
