"""A tiny generator in a folder, a service of it in this process, and what its pictures are."""

import contextlib

import httpx
import torch

from fdistill.io.export import export_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.serving.app import Service, create_app
from fdistill.serving.batcher import Batcher
from fdistill.serving.generators import How
from fdistill.serving.shelf import Shelf
from fdistill.theory.preconditioning import EDM

SIZE = 8
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def export(folder, num_classes=10, seed=0, channels=1, network=None):
    """A folder with a generator of random weights, none of them zero."""
    network = network or SmallUNet(widths=[4, 8], num_classes=num_classes, channels=channels)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return export_folder(GenerativeModel.student(Denoiser(network, EDM(0.5)), 2.0), folder)


@contextlib.contextmanager
def serving(*folders, room=64, limit=16, size=SIZE, start=True):
    """A service of folders whose worker runs, if it is to start."""
    batcher = Batcher(size, room)
    service = Service(Shelf([str(folder) for folder in folders], How(size)), batcher, limit)
    if start:
        batcher.start()
    yield service
    batcher.close()


def client(service, token=None, host="localhost", **headers):
    """What asks it, without a socket."""
    transport = httpx.ASGITransport(create_app(service, token), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)
