"""What pages of ours share: text is shown as it is, and nothing that is not ours may run."""

import base64
import hashlib
import re
from html import escape

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def plain(text: str) -> str:
    """Text that a page shows as it is, whatever stands in it; also within an attribute.

    Args:
        text: Anything, such as what a model or the user of a video site has written.
    """
    return escape(_CONTROL.sub("\ufffd", text))


def security_policy(style: str, script: str) -> str:
    """A content security policy that allows one style, one script and pictures in the file.

    Nothing is fetched, and no attribute `style` or `on...` has an effect.

    Args:
        style: The text between `<style>` and `</style>`.
        script: The text between `<script>` and `</script>`.
    """
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
