"""`demo`: a web page of this machine, to try a model on clips."""

import os
import threading
from importlib import import_module

from rbft.build import Experiment
from rbft.commands.demo_page import build_page
from rbft.runtime.console import print_rank_zero
from rbft.runtime.fault_tolerance import Stopped
from rbft.video_classifier import VideoClassifier


def demo(
    experiment: Experiment, weights: str = "run", port: int = 7860, host: str = "127.0.0.1"
) -> None:
    """Try a model on clips, on a web page of this machine: its frames, probabilities, rationale.

    Nothing leaves the machine; what is uploaded to the page is deleted an hour later.

    Args:
        experiment: The settings.
        weights: The folder of a run, a weights folder or an exported one. With an experiment also
            run, the run's last finished stage (or model.stage), and backbone, the bare backbone.
        port: Port of the page.
        host: Address of the page; 0.0.0.0 lets other machines of the network open it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read as it is imported
    try:
        import_module("gradio")
    except ImportError as error:
        raise ValueError(
            "demo needs Gradio, which is not installed. Run: pip install 'rbft[demo]' (or pip "
            "install gradio)."
        ) from error
    if experiment.endpoint is not None:
        raise ValueError(
            f"demo asks a backbone, not the endpoint ({experiment.endpoint.model}). Add "
            "--endpoint null."
        )
    page, options = build_page(VideoClassifier(experiment, weights))
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, **options
        )
    except OSError as error:
        raise ValueError(
            f"The page cannot be served on {host}, port {port}: another program has it, or it is "
            f"no address of this machine. Add --port {port + 1}."
        ) from error
    print_rank_zero(f"Open {address} in a browser. Ctrl-C ends it.")
    try:
        threading.Event().wait()
    except Stopped:
        page.close(verbose=False)
