"""Models by hub id: out of the local cache if they are there, otherwise downloaded.

Owns the reachability probe, which is what makes an offline machine fail in a second and not in a minute.
"""

import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from loader import directory
from loader.errors import BaseNotFound, HubOffline, LoaderError
from loader.progress import Progress

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]
PROBE_S = 1.0


def fetch(repo: str, progress: Progress) -> Path:
    """The directory of the model `repo` ("organization/name"), complete.

    A complete copy in the local cache is used as it is, without asking the hub.
    Raises HubOffline within about a second when the hub is needed and out of reach, BaseNotFound when the hub has
    no such model, and whatever `directory.check` finds wrong with it.
    """
    # huggingface_hub takes a noticeable part of a second to import, and bases on disk do not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    cached = _cached(repo)
    if cached is not None:
        return cached
    _require_hub(repo)
    progress(f"downloading {repo}", None)
    try:
        path = Path(snapshot_download(repo, allow_patterns=PATTERNS))
    except GatedRepoError as error:
        raise BaseNotFound(
            f"{repo} is gated. Accept its terms on the hub and set HF_TOKEN to a token that may read it."
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseNotFound(
            f"The hub has no model {repo!r}, or it is private. Check the spelling, or set HF_TOKEN."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise HubOffline(_advice(repo, str(error).splitlines()[0] if str(error) else type(error).__name__)) from error
    directory.check(path)
    return path


def _cached(repo: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(repo, allow_patterns=PATTERNS, local_files_only=True))
        directory.check(path)
    except HFValidationError as error:
        raise BaseNotFound(f"{repo!r} is not a hub id: {error}") from error
    except (LocalEntryNotFoundError, LoaderError):
        # An interrupted download leaves an incomplete snapshot: let the hub complete it.
        return None
    return path


def _require_hub(repo: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubOffline(_advice(repo, "HF_HUB_OFFLINE is set"))
    host, port = gateway(constants.ENDPOINT)
    if not reachable(host, port, PROBE_S):
        raise HubOffline(_advice(repo, f"{host}:{port} did not answer within {PROBE_S:g} s"))


def gateway(endpoint: str) -> tuple[str, int]:
    """The (host, port) to which a request for `endpoint` connects first: its proxy where one is set, else itself."""
    url = urlsplit(endpoint)
    proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
    if proxy:
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def reachable(host: str, port: int, timeout_s: float) -> bool:
    """Whether a TCP connection to (host, port) opens within `timeout_s`, name lookup included."""
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout_s).close()
            opened.set()
        except OSError:
            pass

    # A name lookup cannot be given a timeout, so it runs in a thread that may be left behind.
    thread = threading.Thread(target=connect, name="hub-probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return opened.is_set()


def _advice(repo: str, reason: str) -> str:
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return (
        f"{repo} is not in the local cache ({cache}) and the hub cannot be reached: {reason}. "
        f"Copy the model here and give its directory (--base /path/to/model), download it where there is a network "
        f"(hf download {repo}) and copy the cache, or use the embedded base (--base embedded)."
    )
