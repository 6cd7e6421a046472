from kaas.cluster.nodes import Node
from kaas.server.engines.ray.numbering import Numbering

A1, A2, B = Node("x", "10.0.0.9", "", 2), Node("y", "10.0.0.10", "", 2), Node("z", "node.example.org", "", 1)


def test_numbers_run_over_the_nodes_by_address_as_a_number_then_by_device_then_by_name() -> None:
    assert Numbering(None).number([B, A2, A1]) == {"x": [0, 1], "y": [2, 3], "z": [4]}
    named = [Node("r", "10.0.0.1", "simulated-2", 1), Node("s", "10.0.0.1", "simulated-1", 2)]
    assert Numbering(None).number(named) == {"s": [0, 2], "r": [1]}


def test_no_more_are_numbered_than_are_wanted() -> None:
    assert Numbering(3).number([A1, A2, B]) == {"x": [0, 1], "y": [2], "z": []}


def test_a_node_that_joins_later_gets_the_next_ones() -> None:
    numbering = Numbering(None)
    numbering.number([A2])
    assert numbering.number([A1, A2]) == {"y": [0, 1], "x": [2, 3]}


def test_a_node_that_comes_back_and_a_new_one_with_its_address_have_the_numbers_that_it_had() -> None:
    numbering = Numbering(4)
    before = numbering.number([A1, A2])
    assert numbering.number([A2]) == {"y": before["y"]}
    assert numbering.number([A2, A1._replace(id="anew")]) == {"y": before["y"], "anew": before["x"]}
    assert numbering.number([A2, A1._replace(id="smaller", gpus=1)]) == {"y": before["y"], "smaller": [0]}


def test_nodes_with_the_same_address_and_name_keep_their_own_numbers_whichever_is_lost() -> None:
    numbering = Numbering(None)
    twins = [A1, A1._replace(id="twin")]
    before = numbering.number(twins)
    assert sorted(before.values()) == [[0, 2], [1, 3]]
    for left in twins:
        assert numbering.number([left]) == {left.id: before[left.id]}
        other = next(twin for twin in twins if twin is not left)
        assert numbering.number([left, other._replace(id="anew")])["anew"] == before[other.id]
        assert numbering.number(twins) == before


def test_a_label_has_no_blanks_and_is_the_address_where_there_is_no_name() -> None:
    assert A1.label == "10.0.0.9"
    assert A1._replace(name="my node").label == "my-node"
