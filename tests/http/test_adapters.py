"""Adapters over HTTP: upload, versions, aliases, pins, merging, deletion, and uploads that are refused."""

from pathlib import Path
from typing import Any

import httpx

from adapters.manifest import AdapterId
from tests.support import reply_checks
from tests.support.invariants import MARK
from tests.support.server_rig import BASE, ServerRig, adapter_weights, form, write_adapter


def push(http: httpx.Client, name: str, seed: int = 0, **fields: str) -> httpx.Response:
    return http.post("/v1/adapters", data={"name": name, **fields}, files=form(seed))


def parts_left(rig: ServerRig) -> list[Path]:
    return list(rig.services.form_dir.glob("*.part")) if rig.services.form_dir.exists() else []


def test_an_upload_is_201_then_200(http: httpx.Client, rig: ServerRig) -> None:
    first = push(http, "one", alias="prod")
    assert first.status_code == 201
    card = first.json()
    assert card["id"].startswith("sha256:")
    assert (card["name"], card["version"], card["aliases"], card["kind"]) == ("one", 1, ["prod"], "lora")
    assert (card["rank"], card["targets"], card["bytes"], card["state"], card["base"]) == (
        2,
        ["q_proj"],
        128,
        "disk",
        BASE,
    )
    again = push(http, "one", alias="prod")
    assert again.status_code == 200
    assert again.json()["id"] == card["id"]
    assert again.json()["version"] == 1
    assert parts_left(rig) == []


def test_versions_and_aliases(http: httpx.Client) -> None:
    first, second = push(http, "two", 1, alias="prod").json(), push(http, "two", 2).json()
    assert second["version"] == 2
    versions = http.get("/v1/adapters/two/versions").json()["data"]
    assert [card["id"] for card in versions] == [first["id"], second["id"]]
    answers = [
        _answering(http, model) for model in ("two", "two@1", "two@prod", f"two@{first['id']}", f"{BASE}:two@prod")
    ]
    assert answers == [second["id"], first["id"], first["id"], first["id"], first["id"]]
    moved = http.put("/v1/adapters/two/aliases/prod", json={"version": 2})
    assert moved.status_code == 200
    assert _answering(http, "two@prod") == second["id"]
    assert http.get("/v1/adapters/two@prod").json()["version"] == 2
    assert http.put("/v1/adapters/two/aliases/prod", json={"version": 9}).status_code == 404
    assert http.put("/v1/adapters/two/aliases/7", json={"version": 1}).status_code == 400
    assert http.put("/v1/adapters/two/aliases/prod", json={"version": True}).status_code == 400
    assert http.delete("/v1/adapters/two/aliases/prod").status_code == 200
    assert http.delete("/v1/adapters/two/aliases/prod").status_code == 404


def _answering(http: httpx.Client, model: str, **more: str) -> str:
    reply = http.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 1, **more})
    assert reply.status_code == 200, reply.text
    return reply.headers["x-rootstock-adapter"]


def test_adapter_id_is_loraxs_spelling(http: httpx.Client) -> None:
    id = push(http, "lorax", 5).json()["id"]
    assert _answering(http, BASE, adapter_id="lorax") == id
    assert _answering(http, "", adapter_id="lorax@1") == id
    assert _answering(http, "lorax", adapter_id="lorax") == id
    assert _answering(http, BASE, adapter_id="") == "base"
    assert _answering(http, "") == "base"
    both = http.post("/v1/completions", json={"model": "lorax", "adapter_id": "other", "prompt": "x"})
    assert both.status_code == 400
    assert both.json()["error"]["param"] == "adapter_id"


def test_e46_unknown_models_are_404_with_a_hint(http: httpx.Client, rig: ServerRig) -> None:
    push(http, "weather", 6)
    said = [{"role": "user", "content": MARK}]
    reply = http.post("/v1/completions", json={"model": "waether", "prompt": MARK})
    unknown: Any = {"status": 404, "code": "model_not_found", "param": "model"}
    reply_checks.refused(reply, http, rig, **unknown)
    assert "weather" in reply.json()["error"]["message"]
    for model in ("weather@7", "weather@nope", "weather@sha256:" + "0" * 64, "../weather", "weather@", "x" * 500, "é"):
        for path, fields in (("completions", {"prompt": MARK}), ("chat/completions", {"messages": said})):
            reply_checks.refused(http.post(f"/v1/{path}", json={"model": model, **fields}), http, rig, **unknown)
        shown = http.get(f"/v1/models/{model.replace('../', '..%2F')}")
        reply_checks.refused(shown, http, rig, **unknown)
    long = http.post("/v1/completions", json={"model": "x" * 513, "prompt": MARK})
    reply_checks.refused(long, http, rig, code="validation_error", param="model")


def test_listing_and_deleting(http: httpx.Client, rig: ServerRig) -> None:
    push(http, "three", 7)
    assert "three" in [card["name"] for card in http.get("/v1/adapters").json()["data"]]
    assert "three" in [card["id"] for card in http.get("/v1/models").json()["data"]]
    assert http.delete("/v1/adapters/three@prod").status_code == 400
    assert http.delete("/v1/models/three").json() == {"id": "three", "object": "model", "deleted": True}
    assert http.delete("/v1/adapters/three").status_code == 404
    assert http.get("/v1/adapters/three").status_code == 404
    refused = http.delete(f"/v1/models/{BASE}")
    assert refused.status_code == 409
    assert refused.headers["x-should-retry"] == "false"


def test_one_version_goes_unless_an_alias_points_at_it(http: httpx.Client, rig: ServerRig) -> None:
    ids = [push(http, "pruned", number).json()["id"] for number in (17, 18, 19)]
    http.put("/v1/adapters/pruned/aliases/prod", json={"version": 2, "canary": {"version": 3, "weight": 0.5}})
    for number in (2, 3):
        refused = http.delete(f"/v1/adapters/pruned@{number}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_in_use")
        assert "'prod'" in refused.json()["error"]["message"]
    assert http.delete("/v1/adapters/pruned@1").status_code == 200
    assert http.delete("/v1/adapters/pruned@1").status_code == 404
    assert [card["version"] for card in http.get("/v1/adapters/pruned/versions").json()["data"]] == [2, 3]
    assert AdapterId(ids[0]) not in set(rig.store.ids())
    again = push(http, "pruned", 17).json()
    assert (again["id"], again["version"]) == (ids[0], 4), "no number is given twice"
    push(http, "single", 27)
    only = http.delete("/v1/adapters/single@1")
    assert only.status_code == 409 and "only one" in only.json()["error"]["message"]


def test_pins_follow_the_newest_version(http: httpx.Client, rig: ServerRig) -> None:
    first = push(http, "pinned", 8).json()["id"]
    card = http.post("/v1/adapters/pinned/pin").json()
    assert card["pinned"] and card["state"] == "device"
    assert rig.worker.pinned == {first}
    second = push(http, "pinned", 9).json()["id"]
    assert rig.worker.pinned == {second}
    for refused in (http.post("/v1/adapters/pinned@1/pin"), http.delete("/v1/adapters/pinned@2/pin")):
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "name")
    assert not http.delete("/v1/adapters/pinned/pin").json()["pinned"]
    assert rig.worker.pinned == set()
    http.post("/v1/adapters/pinned/pin")
    http.delete("/v1/adapters/pinned")
    assert rig.worker.pinned == set()
    assert http.post("/v1/adapters/pinned/pin").status_code == 404


def test_merge_and_unmerge(http: httpx.Client, rig: ServerRig) -> None:
    id = push(http, "merged", 10).json()["id"]
    assert http.delete("/v1/adapters/merged/merge").status_code == 409
    assert http.post("/v1/adapters/merged/merge").json()["state"] == "merged"
    assert rig.worker.merged == id
    refused = http.delete("/v1/adapters/merged")
    assert refused.status_code == 409
    assert "DELETE" in refused.json()["error"]["message"] and refused.json()["error"]["code"] == "merged"
    assert http.delete("/v1/adapters/merged/merge").json()["state"] == "disk"
    assert rig.worker.merged is None
    assert http.delete("/v1/adapters/merged").status_code == 200


FILES = form()


def test_every_fault_is_listed_with_its_fix(http: httpx.Client) -> None:
    files = FILES | {"weights": ("w.safetensors", adapter_weights(rank=4), "x/y")}
    error = http.post("/v1/adapters", data={"name": "x"}, files=files).json()["error"]
    assert error["code"] == "invalid_adapter"
    assert len(error["faults"]) >= 2
    assert all(set(fault) == {"where", "problem", "fix"} for fault in error["faults"])


def test_one_byte_chunks_make_the_same_adapter(http: httpx.Client) -> None:
    request = http.build_request("POST", "/v1/adapters", data={"name": "bytes"}, files=form(20))
    body, kind = request.read(), request.headers["content-type"]
    chunks = (body[place : place + 1] for place in range(len(body)))
    dribbled = http.post("/v1/adapters", content=chunks, headers={"content-type": kind})
    assert dribbled.status_code == 201
    assert dribbled.json()["id"] == push(http, "bytes", 20).json()["id"]


def test_vllms_routes(http: httpx.Client, rig: ServerRig) -> None:
    root = rig.services.adapter_root
    assert root is not None
    write_adapter(root / "team" / "a", 30)
    loaded = http.post("/v1/load_lora_adapter", json={"lora_name": "vl", "lora_path": "team/a"})
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'vl' added successfully.")
    again = http.post("/v1/load_lora_adapter", json={"lora_name": "vl", "lora_path": str(root / "team" / "a")})
    assert again.status_code == 400
    assert again.json()["error"]["type"] == "InvalidUserInput"
    inplace = {"lora_name": "vl", "lora_path": "team/a", "load_inplace": True}
    assert http.post("/v1/load_lora_adapter", json=inplace).status_code == 200
    gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "vl"})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'vl' removed successfully.")
    missing = http.post("/v1/unload_lora_adapter", json={"lora_name": "vl", "lora_int_id": None})
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "NotFoundError"
    assert http.post("/v1/load_lora_adapter", json={"lora_path": "team/a"}).status_code == 400


def test_vllms_loader_stays_under_its_root(http: httpx.Client, rig: ServerRig) -> None:
    root = rig.services.adapter_root
    assert root is not None
    outside = write_adapter(root.parent / "outside", 31)
    (root / "link").symlink_to(outside)
    for path in ("../outside", str(outside), "link", "team/../../outside", "/etc", "no\u0001", "x" * 4000, "."):
        reply = http.post("/v1/load_lora_adapter", json={"lora_name": "esc", "lora_path": path})
        assert reply.status_code in (404, 422), (path, reply.text)
    url = http.post("/v1/load_lora_adapter", json={"lora_name": "esc", "lora_path": "http://169.254.169.254/x"})
    assert url.status_code == 400
    assert http.get("/v1/adapters/esc").status_code == 404
