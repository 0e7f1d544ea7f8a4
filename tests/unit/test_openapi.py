"""How definitions are named and references followed, and when the document is made anew."""

from __future__ import annotations

from typing import Any

from penstock.daemon.front.openapi import Document, build
from penstock.daemon.front.operations import CALL, DESCRIBE, OPERATIONS
from penstock.daemon.front.schemas import Bundle
from tests.fix_listing import listing

ROUTES = {CALL, *OPERATIONS}


def refers(name: str, **definitions: Any) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}", "$defs": definitions}


NUMBER = {"type": "integer"}
TEXT = {"type": "string"}


def test_what_means_the_same_has_one_name() -> None:
    bundle = Bundle([(("a", "body"), refers("Query", Query=TEXT)), (("b", "result"), refers("Query", Query=TEXT))], {})
    assert bundle.components == {"Query": TEXT}
    assert bundle.schema(("a", "body")) == bundle.schema(("b", "result")) == {"$ref": "#/components/schemas/Query"}


def test_what_means_something_else_has_another_whatever_the_order() -> None:
    sides = [(("a", "body"), refers("Query", Query=TEXT)), (("b", "body"), refers("Query", Query=NUMBER))]
    expected = {"a.body.Query": TEXT, "b.body.Query": NUMBER}
    assert Bundle(sides, {}).components == Bundle(sides[::-1], {}).components == expected


def test_a_name_means_what_it_refers_to_as_well() -> None:
    box = {"type": "array", "items": {"$ref": "#/$defs/Item"}}
    sides = [(("a", "body"), refers("Box", Box=box, Item=TEXT)), (("b", "body"), refers("Box", Box=box, Item=NUMBER))]
    components = Bundle(sides, {}).components
    assert components.keys() == {"a.body.Box", "a.body.Item", "b.body.Box", "b.body.Item"}
    assert components["b.body.Box"]["items"] == {"$ref": "#/components/schemas/b.body.Item"}


def test_the_daemons_own_names_are_not_taken() -> None:
    bundle = Bundle([(("a", "result"), refers("Problem", Problem=TEXT))], {"Problem": NUMBER})
    assert bundle.components == {"Problem": NUMBER, "a.result.Problem": TEXT}


def test_recursion_comes_to_an_end() -> None:
    tree = {"type": "array", "items": {"$ref": "#/$defs/Tree"}}
    bundle = Bundle([(("a", "body"), refers("Tree", Tree=tree))], {})
    assert bundle.components["Tree"]["items"] == {"$ref": "#/components/schemas/Tree"}


def test_references_to_nothing_allow_everything_and_data_stays_as_it_is() -> None:
    schema = {"anyOf": [{"$ref": "#/$defs/Gone"}, {"$ref": "http://elsewhere/"}], "default": {"$ref": "#/$defs/Gone"}}
    lifted = Bundle([(("a", "body"), schema)], {}).schema(("a", "body"))
    assert lifted == {"anyOf": [{}, {}], "default": {"$ref": "#/$defs/Gone"}}


def test_agents_without_a_body_and_with_a_raw_one() -> None:
    listings = [listing("none", {"type": "null"}), listing("raw", raw_body=True), listing("any")]
    paths = build(listings, ROUTES, secured=False)["paths"]
    assert "requestBody" not in paths["/v1/agents/none"]["post"]
    assert "*/*" in paths["/v1/agents/raw"]["post"]["requestBody"]["content"]
    assert paths["/v1/agents/any"]["post"]["requestBody"]["content"] == {"application/json": {"schema": {}}}


def test_operations_have_names_of_their_own_whatever_agents_are_called() -> None:
    document = build(
        [listing("status"), listing("describe_status"), listing("a-b"), listing("a.b")], ROUTES, secured=True
    )
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names)) == 2 * 4 + len(OPERATIONS.keys() - {DESCRIBE})


def test_the_document_is_made_once() -> None:
    document = Document(ROUTES)
    catalogue = {"a": listing("a", refers("Query", Query=TEXT))}
    first = document.current(catalogue, secured=False, hide_admin=False)
    catalogue["a"] = listing("a", refers("Query", Query=TEXT))
    assert document.current(catalogue, secured=False, hide_admin=False) is first
    catalogue["a"].agent.timeout = 1.0
    assert document.current(catalogue, secured=False, hide_admin=False)[1] != first[1]
    assert document.current(catalogue, secured=True, hide_admin=False)[1] != first[1]
    assert b"/v1/workers" not in document.current(catalogue, secured=False, hide_admin=True)[0]
