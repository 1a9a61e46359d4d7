"""The model hub: whether it can be reached, asked once and without its client's retries."""

import os
import re
from functools import cache
from pathlib import Path

from rbft.runtime.console import print_rank_zero

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
SECONDS = 10  # to wait for a connection
# What the clients of several versions raise where there is no way to the hub.
NO_WAY = {"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"}


def check_hub(source: str) -> None:
    """Finds out whether a backbone that is no folder can be read at all.

    Its client would try for half a minute, file by file. Where the hub cannot be reached but the
    local cache holds the backbone, the client is told to stay offline from here on.

    Args:
        source: A `from_pretrained` folder or a hub id.

    Raises:
        ValueError: If it is neither here nor in the local cache, and there is no way to the hub.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if Path(source).exists() or not HUB_ID.fullmatch(source) or constants.HF_HUB_OFFLINE:
        return
    reason = no_way(constants.ENDPOINT)
    if reason is None:
        return
    if isinstance(try_to_load_from_cache(source, "config.json"), str):
        print_rank_zero(
            f"The hub {constants.ENDPOINT} cannot be reached ({reason}): {source} is taken from "
            "the local cache."
        )
        # For processes that a Trainer starts, and for this one.
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        return
    raise ValueError(
        f"model.backbone '{source}' is no folder here and not in the local cache "
        f"({constants.HF_HUB_CACHE}), and the hub {constants.ENDPOINT} cannot be reached: "
        f"{reason}. Give a folder that holds config.json, model weights and processor, or download "
        f"it where there is a network: hf download {source} --local-dir FOLDER."
    )


@cache
def no_way(endpoint: str) -> str | None:
    """Why a server cannot be reached; None if it answers, whatever it says.

    Args:
        endpoint: Its URL.
    """
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=SECONDS)
    except Exception as error:
        if NO_WAY & {kind.__name__ for kind in type(error).__mro__}:
            return str(error).strip().rstrip(".") or type(error).__name__
    return None
