"""A tiny generator in a folder, a service of it in this process, and what its pictures are."""

import contextlib
import os
import threading
from multiprocessing.connection import Connection
from unittest import mock

import httpx
import torch

from fdistill.io.export import export_folder
from fdistill.models.denoiser import Denoiser
from fdistill.models.networks import SmallUNet
from fdistill.sampling.generator import GenerativeModel
from fdistill.serving.app import Service, create_app
from fdistill.serving.batcher import Batcher
from fdistill.serving.settings import How
from fdistill.serving.worker import Worker
from fdistill.serving.workshop import Workshop
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


class InThread:
    """In place of the worker's process: its workshop in a thread of this one."""

    def __init__(self, connection):
        other = Connection(os.dup(connection.fileno()))
        self.workshop = Workshop(other, other.close)
        self.thread = threading.Thread(target=self.run, args=(other,))
        self.thread.start()

    def run(self, connection):
        self.workshop.run()
        if hasattr(self.workshop, "shelf"):  # else it was not opened
            self.workshop.shelf.close()
            self.workshop.batcher.close()
        connection.close()

    def wait(self, seconds=None):
        self.thread.join(seconds)
        return 0


@contextlib.contextmanager
def working(died=lambda: None):
    """A worker, and its workshop, which are both of this process."""
    with mock.patch("fdistill.serving.worker.start", InThread):
        worker = Worker(died)
    with contextlib.closing(worker):
        yield worker, worker._process.workshop


@contextlib.contextmanager
def serving(*folders, room=64, limit=16, size=SIZE, start=True):
    """A service of folders, which makes pictures once `service.batcher` is started, if it is not at once."""
    begin = Batcher.start if start else lambda _: None
    with working() as (worker, workshop):
        with mock.patch.object(Batcher, "start", begin):
            worker.open([str(folder) for folder in folders], How(size))
        service = Service(worker, size, room, limit)
        service.workshop, service.batcher = workshop, workshop.batcher
        yield service


def client(service, token=None, host="localhost", **headers):
    """What asks it, without a socket."""
    transport = httpx.ASGITransport(create_app(service, token), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)
