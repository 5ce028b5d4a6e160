"""Readers of raw data, one file each; the registry; and which of them a source needs."""

from ...errors import UserError
from ..tree import Tree
from . import authors, coco, kinetics, msr_action3d, ntu, nw_ucla, openpose, pickled, table, utd_mhad, utkinect, videos
from .job import Clip, Format, Job, Options, Skipped, read_pieces

_READERS = (pickled, ntu, kinetics, authors, nw_ucla, utd_mhad, msr_action3d, utkinect, openpose, coco, table, videos)
FORMATS: dict[str, Format] = {one.name: one for reader in _READERS for one in reader.FORMATS}

__all__ = ["FORMATS", "Clip", "Format", "Job", "Options", "Skipped", "choose_format", "read_pieces"]


def choose_format(tree: Tree, name: str | None, options: Options) -> Format:
    """The format of that name, else the one that the source's files tell.

    Raises:
        UserError: an unknown name, no files, or files of no known format or of several.
    """
    if name is None and options.table is not None:
        name = "table"
    if name is not None:
        if name not in FORMATS:
            raise UserError(f"format {name!r}: unknown; expected one of {', '.join(FORMATS)}")
        return FORMATS[name]
    if not tree.entries:
        raise UserError(f"{tree.root}: holds no files")
    found = [one for one in FORMATS.values() if one.matches(tree)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(one.name for one in found)
        raise UserError(f"{tree.root}: could be {names}; say which with --format, or give the folder of one of them")
    some = ", ".join(entry.name for entry in tree.entries[:3])
    raise UserError(
        f"{tree.root}: its files ({some}{', ...' if len(tree.entries) > 3 else ''}) tell no known format; formats are "
        f"{', '.join(FORMATS)}: see msg3d-fast prepare --help"
    )
