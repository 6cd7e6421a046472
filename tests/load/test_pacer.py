from kaas.load.pacer import Pacer, Step
from kaas.ramp import Ramp

RAMP = Ramp(1, 3, 1, 10.0)


def test_the_clients_of_the_next_step_are_wanted_while_this_one_goes_on() -> None:
    pacer = Pacer(RAMP)
    assert (pacer.step, pacer.wanted) == (Step("step 1/3", 0.0, 10.0, 1), 2)
    assert list(pacer.over(10.0, 1)) == [Step("step 1/3", 0.0, 10.0, 1)]
    assert (pacer.step, pacer.wanted) == (Step("step 2/3", 10.0, 20.0, 2), 3)
    assert list(pacer.over(20.0, 2)) != []
    assert (pacer.step, pacer.wanted) == (Step("step 3/3", 20.0, 30.0, 3), 3)
    assert [step.label for step in pacer.over(30.0, 3)] == ["step 3/3"]


def test_every_step_is_given_once_though_nobody_looked_for_long() -> None:
    pacer = Pacer(RAMP)
    assert [step.label for step in pacer.over(99.0, 1)] == ["step 1/3", "step 2/3", "step 3/3"]


def test_a_step_that_has_its_clients_in_time_is_not_late() -> None:
    pacer = Pacer(RAMP)
    pacer.have(0.0, 1)
    list(pacer.over(10.0, 1))
    pacer.have(10.1, 1)  # one is missing yet
    pacer.have(10.4, 2)
    pacer.have(15.0, 1)  # one has died: its successor is no late one
    list(pacer.over(20.0, 2))
    assert pacer.late == []


def test_a_step_whose_clients_come_late_or_never_is_noted() -> None:
    pacer = Pacer(RAMP)
    pacer.have(0.0, 1)
    list(pacer.over(10.0, 1))
    pacer.have(14.0, 2)
    list(pacer.over(20.0, 2))
    list(pacer.over(30.0, 2))
    assert pacer.late == ["step 2/3 had its 2 clients 4.0 s late", "step 3/3 never had its 3 clients: 2 were running"]


def test_a_user_may_allow_clients_to_come_late_or_never() -> None:
    pacer = Pacer(RAMP, max_late=10.0)
    pacer.have(0.0, 1)
    list(pacer.over(10.0, 1))
    pacer.have(19.9, 2)
    list(pacer.over(30.0, 2))
    assert pacer.late == []
    strict = Pacer(RAMP, max_late=0.0)
    strict.have(0.1, 1)
    assert strict.late == ["step 1/3 had its 1 clients 0.1 s late"]
