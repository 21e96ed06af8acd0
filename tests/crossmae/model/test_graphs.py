"""What ``graphed`` asks of PyTorch's CUDA graphs, with stand-ins for them: no GPU is needed."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

import crossmae


class OnDevice(torch.Tensor):
    """A tensor on a CPU that says it is on a CUDA device."""

    is_cuda = True


class Elsewhere:
    """As a generator of another device."""

    device = torch.device("cuda:1")


class Stream:
    def wait_stream(self, other):
        pass


class Graph:
    """As PyTorch's: generators have to be registered before the capture, and none other may draw in it."""

    def __init__(self):
        self.registered, self.capturing, self.captured = [], False, False

    def register_generator_state(self, generator):
        assert not self.capturing
        self.registered.append(generator)

    def replay(self):
        assert self.captured


@contextmanager
def capture(graph):
    graph.capturing = True
    yield
    graph.capturing, graph.captured = False, True


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are made."""
    made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Graph()) or made[-1])
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return made


def model_and_images():
    sizes = {"encoder_width": 8, "encoder_heads": 2, "encoder_depth": 1}
    sizes |= {"decoder_width": 8, "decoder_heads": 2, "decoder_depth": 1}
    model = crossmae.create_model("crossmae_vit_tiny_patch4", image_size=8, **sizes)
    return model, torch.randn(2, 3, 8, 8).as_subclass(OnDevice)


def test_a_generator_is_registered_with_the_graph_before_the_capture(graphs):
    model, images = model_and_images()
    generator = torch.Generator()
    before = generator.get_state()
    replay = crossmae.graphed(model, images, generator=generator)
    assert [graph.registered for graph in graphs] == [[generator]]
    assert not torch.equal(generator.get_state(), before)  # it is the one that draws
    assert replay(images).loss.isfinite()


def test_without_a_generator_none_is_registered(graphs):
    crossmae.graphed(*model_and_images())
    assert [graph.registered for graph in graphs] == [[]]


def test_a_generator_on_another_device_is_refused_before_any_work(graphs):
    model, images = model_and_images()
    with pytest.raises(ValueError, match="generator must be on cpu like the sample, got cuda:1"):
        crossmae.graphed(model, images, generator=Elsewhere())
    assert not graphs
