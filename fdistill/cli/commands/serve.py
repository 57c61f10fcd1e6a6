"""`fdistill serve`: generators over HTTP, by OpenAI's images API and on a page."""

import functools
import importlib.util
from pathlib import Path

from fdistill.cli.own_modules import imported

_NEEDS = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    folders: list[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | None = None,
    max_batch: int = 64,
    queue: int = 1024,
    limit: int = 64,
    device: str = "cpu",
    bf16: bool = False,
    compile: bool = False,
    decoder: str | None = None,
    jobs: str | None = None,
    configs: str | None = None,
    on: str = "here",
    replicas: int = 1,
) -> None:
    """Serve generators until SIGTERM, which answers what waits: docs/service.md.

    Args:
        folders: of fdistill export, checkpoints of runs, or names of shipped ones; NAME=PATH names one.
        host: address to listen on; one beyond this machine needs a token.
        port: to listen on; 0 for a free one.
        token_file: file of the token that every request has to bring.
        max_batch: images of every batch, which is padded to it so that a seed gives the same bytes in any company.
        queue: images that may wait; beyond it requests are answered by 429.
        limit: images of one request.
        device: where to compute: cpu, cuda, cuda:1, mps.
        bf16: compute in bfloat16 where that is safe; other last bits than without.
        compile: networks go through torch.compile, which makes the start longer; other last bits than without.
        decoder: folder of another VAE of the same latents, as AutoencoderTiny, which is faster than a generator's own.
        jobs: folder of a queue of runs, as of fdistill submit, that requests may list, stop, resume, add to and serve.
        configs: with --jobs, folder of the only configurations that requests may run.
        on: here, or ray: the same service on Ray Serve, in a cluster (RAY_ADDRESS) or one that is started for it.
        replicas: on ray, how many, each with batches of its own and, on cuda, a GPU of its own.
    """
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"a service needs {', '.join(missing)}, not found here: pip install 'fdistill[serve]'")
    if (jobs is None) != (configs is None):
        raise ValueError("runs are served from --jobs FOLDER and --configs FOLDER: expected both or neither, got one")
    if configs is not None and not Path(configs).is_dir():
        raise ValueError(f"--configs is a folder of configurations: {configs} is none")
    if on not in ("here", "ray"):
        raise ValueError(f"--on is here or ray: got {on}")
    if on == "here" and replicas != 1:
        raise ValueError(f"--replicas is for --on ray, here there is one: got {replicas}")
    if on == "ray" and jobs is not None:
        raise ValueError("--jobs is served here, not on ray, for one replica would serve a run and the others not")
    from fdistill.serving.log import log_to_stderr
    from fdistill.serving.server import run
    from fdistill.serving.settings import How, Settings

    log_to_stderr()
    how = How(max_batch, device, bf16, compile, decoder)
    runs = None
    if jobs is not None and configs is not None:
        from fdistill.serving.jobs.routes import router

        runs = functools.partial(router, jobs, configs)
    settings = Settings(folders, how, host, port, token_file, queue, limit, imported())
    if on == "ray":
        from fdistill.serving import on_ray

        on_ray.run(settings, replicas)
    else:
        run(settings, runs)
