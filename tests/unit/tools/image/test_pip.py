"""The build uses the package index that pip uses on this machine, and the image does not contain its address."""

from __future__ import annotations

from pathlib import Path

from tools.image.pip import configuration, mounts


def test_settings_of_files_and_of_the_environment_become_one_file(tmp_path: Path):
    """pip's settings from configuration files and from environment variables are merged into one file; environment
    variables take precedence.

    Existing files and folders that the settings name are mounted at the same paths.
    """
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    listing = (
        "global.proxy='http://one.example:3128'\n"
        "global.timeout='5'\n"
        "install.no-deps='true'\n"
        ":env:.proxy='http://two.example:3128'\n"
        f":env:.find-links='{wheels}\\n/nowhere/at/all'\n"
    )
    place = tmp_path / "conf"
    place.mkdir()

    found = mounts(configuration(listing), place)

    assert found == [f"{place}/pip.conf:/etc/pip.conf:ro", f"{wheels}:{wheels}:ro"]
    text = (place / "pip.conf").read_text()
    assert "two.example" in text
    assert "one.example" not in text
    assert "[install]" in text
    assert (place / "pip.conf").stat().st_mode & 0o077 == 0


def test_pip_reads_several_values_back(tmp_path: Path):
    listing = "global.find-links='/a\\n/b'\n"
    mounts(configuration(listing), tmp_path)

    again = configuration("")
    again.read(tmp_path / "pip.conf")

    assert again.get("global", "find-links").split() == ["/a", "/b"]
