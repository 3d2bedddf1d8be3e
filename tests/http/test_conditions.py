"""If-Match and If-None-Match: a change holds only when nothing was changed in between."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.server_rig import form


def push(http: httpx.Client, name: str, seed: int, **headers: str) -> httpx.Response:
    spelled = {header.replace("_", "-"): value for header, value in headers.items()}
    return http.post("/v1/adapters", data={"name": name}, files=form(seed), headers=spelled)


def move(http: httpx.Client, name: str, version: int, **headers: str) -> httpx.Response:
    spelled = {header.replace("_", "-"): value for header, value in headers.items()}
    return http.put(f"/v1/adapters/{name}/aliases/prod", json={"version": version}, headers=spelled)


def refused(reply: httpx.Response) -> bool:
    refused = reply.status_code == 412 and reply.json()["error"]["code"] == "precondition_failed"
    return refused and reply.headers["x-should-retry"] == "false"


def test_an_alias_moves_from_where_it_was_seen(http: httpx.Client) -> None:
    for seed in (200, 201):
        push(http, "careful", seed)
    assert refused(move(http, "careful", 1, if_match="*"))
    made = move(http, "careful", 1, if_none_match="*")
    assert made.headers["etag"] == '"1"' == http.get("/v1/adapters/careful@prod").headers["etag"]
    assert refused(move(http, "careful", 2, if_none_match="*"))
    assert move(http, "careful", 2, if_match='"7", "1"').headers["etag"] == '"2"'
    assert refused(move(http, "careful", 1, if_match='"1"'))
    assert refused(move(http, "careful", 1, if_match='"another server\'s"'))
    assert http.get("/v1/adapters/careful@prod").json()["version"] == 2
    path = "/v1/adapters/careful/aliases/prod"
    assert refused(http.delete(path, headers={"if-match": '"1"'}))
    assert http.delete(path, headers={"if-match": '"2"'}).status_code == 200


def test_an_adapter_is_deleted_as_it_was_seen(http: httpx.Client) -> None:
    seen = push(http, "brief", 202).headers["etag"]
    push(http, "brief", 203)
    assert refused(http.delete("/v1/adapters/brief", headers={"if-match": seen}))
    assert http.delete("/v1/adapters/brief", headers={"if-match": '"2"'}).status_code == 200


def test_of_many_conditional_moves_one_wins(http: httpx.Client) -> None:
    for seed in range(204, 209):
        push(http, "race", seed)
    move(http, "race", 1)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda number: move(http, "race", number, if_match='"1"'), range(2, 6)))
    assert sorted(reply.status_code for reply in replies) == [200, 412, 412, 412]


@pytest.mark.parametrize("header", ["3", '"1', '"1" "2"', ""])
def test_what_is_no_tag_is_400(header: str, http: httpx.Client) -> None:
    reply = push(http, "odd", 209, if_match=header)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "condition_invalid")
    assert push(http, "odd", 209, if_none_match='"1"').status_code == 400
