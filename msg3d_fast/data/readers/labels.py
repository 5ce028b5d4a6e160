"""Class and split of clips whose files do not tell them: from a list of the user's, or from the folders they lie in.

id,label,split      a CSV with these columns; the split may be left out
split/class/clip    folders; the split (train, val, test, ...) may be left out
"""

import csv
import io
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ...errors import UserError
from .job import Bad, Options

_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")


@dataclass(frozen=True)
class Labels:
    """Looks classes and splits up.

    Args:
        known: (class, split) by id; None if folders tell them.
    """

    known: dict[str, tuple[str, str | None]] | None = field(default=None, repr=False)

    def of(self, name: str) -> tuple[str, str | None]:
        """Class and split of a clip with this id, which may be a path.

        Raises:
            Bad: nothing says so.
        """
        path = PurePosixPath(name)
        if self.known is not None:
            for key in (name, path.name, path.stem):
                if key in self.known:
                    return self.known[key]
            raise Bad("the list of labels does not name it")
        folders = list(path.parts[:-1])
        split = folders.pop(0) if folders and folders[0].lower() in _SPLITS else None
        if not folders:
            raise Bad("nothing says its class: put it in a folder of its class's name, or give --labels CSV")
        return folders[-1], split


def open_labels(options: Options) -> Labels:
    """The labels of `options.labels`, or those of folders.

    Raises:
        UserError: a list that cannot be read.
    """
    path = options.labels
    if path is None:
        return Labels()
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path}: cannot be read ({reason:.80}); give a CSV with the columns id,label[,split]"
        ) from None
    names = [name.strip().lower().replace("class", "label") for name in rows[0]] if rows else []
    if "label" in names:
        rows = rows[1:]
        place = {name: names.index(name) for name in ("id", "label", "split") if name in names}
    else:
        place = {"id": 0, "label": 1, "split": 2}
    if "id" not in place or not rows:
        raise UserError(
            f"{path}: has the columns {', '.join(names)[:80]}, expected id,label[,split] and a line per clip"
        )
    known: dict[str, tuple[str, str | None]] = {}
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if len(cells) <= max(place["id"], place["label"]) or not cells[place["id"]] or not cells[place["label"]]:
            raise UserError(f"{path}: entry {number} is {','.join(row)[:60]!r}, expected id,label[,split]")
        where = place.get("split", len(cells))
        split = cells[where] if where < len(cells) and cells[where] else None
        if known.setdefault(cells[place["id"]], (cells[place["label"]], split)) != (cells[place["label"]], split):
            raise UserError(f"{path}: names {cells[place['id']]:.60} twice, with different entries")
    return Labels(known)
