from hwnas.core.identity import as_ever, differences, without


def test_settings_that_came_later_are_left_out_where_they_change_nothing():
    settings = {"a": 1, "new": False, "inner": {"b": [], "c": 2}, "other": True}
    later = {"new": False, "other": False, "inner.b": [], "inner.c": 3, "never": 0, "no.such": 0}
    assert as_ever(settings, later) == {"a": 1, "inner": {"c": 2}, "other": True}
    assert settings["inner"] == {"b": [], "c": 2}


def test_differences_are_told_by_dotted_name():
    kept = {"config": {"lr": 0.1, "inner": {"x": 1}}, "space": "chain"}
    asked = {"config": {"lr": 0.2, "inner": {"x": 1}}, "space": "chain", "seed": 3}
    assert differences(kept, asked) == [
        "config.lr: checkpoint 0.1, asked 0.2",
        "seed: checkpoint None, asked 3",
    ]
    assert differences(kept, kept) == []


def test_parts_that_runs_do_not_share_are_left_out():
    identity = {"config": {"target_ms": 3.0, "lr": 0.1}, "space": "chain"}
    assert without(identity, ["config.target_ms"]) == {"config": {"lr": 0.1}, "space": "chain"}
    assert identity["config"] == {"target_ms": 3.0, "lr": 0.1}
