"""The one sentence on who took part."""

from atoll.runs.status import participation_status


def rounds(*contributed, invited="abc", committed=None, why="dropped: left"):
    return [
        {
            "round": i,
            "committed": committed is None or i in committed,
            "invited": list(invited),
            "contributed": dict.fromkeys(given, 1),
            "missing": {c: why for c in invited if c not in given},
        }
        for i, given in enumerate(contributed, start=1)
    ]


def test_all_there_at_the_end_is_simply_completed():
    assert participation_status("completed", rounds("abc", "ab", "abc")) == "completed"
    assert participation_status("completed", []) == "completed"


def test_a_site_that_left_is_named_with_the_round_it_was_first_missing_from():
    assert (
        participation_status("completed", rounds("abc", "abc", "ab", "ab"))
        == "completed without c from round 3"
    )
    assert (
        participation_status("interrupted", rounds("a", "ab", "a"))
        == "interrupted without b from round 3, c from round 1"
    )


def test_aborted_rounds_say_nothing_about_sites():
    assert participation_status("completed", rounds("abc", "", committed={1})) == "completed"


def test_being_late_after_enough_others_or_not_drawn_is_not_lost():
    made = rounds("abc", "ab", why="surplus: arrived 3 after the start, enough before it")
    assert participation_status("completed", made) == "completed"
    drawn = [*rounds("ab", invited="abc"), *rounds("a", invited="ab")]
    assert participation_status("completed", drawn) == "completed"


def test_a_site_whose_every_answer_came_too_late_is_named_though_it_is_at_work_at_the_end():
    """An asynchronous run: c is thrown away once, starts anew, and is on its way when the run ends."""
    made = rounds("abc", "ab", "ab", why="surplus: still at work")
    made[0]["contributed"].pop("c")
    assert participation_status("completed", made) == "completed"
    made[1]["missing"]["c"] = "late: 5 versions old, at most 4"
    assert participation_status("completed", made) == "completed without c from round 1"
    made[0]["contributed"]["c"] = 1
    assert participation_status("completed", made) == "completed"


def test_of_many_lost_sites_the_first_five_are_named():
    made = rounds("abcdefgh", "a", invited="abcdefgh")
    status = participation_status("completed", made)
    assert status.endswith("f from round 2 and 2 more")
