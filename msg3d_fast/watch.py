"""Whether weights changed since something was made from them."""

import weakref
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

VERSION = attrgetter("_version")
COUNTER = "num_batches_tracked"  # the only buffer that inference may let change


class _Held:
    """What a module held: its tensors, how often torch saw them written, and where their memory was."""

    def __init__(self, module: nn.Module) -> None:
        self.owners = [d for d in (module._parameters, module._buffers) if d]
        self.entries = [t for d in self.owners for t in d.values()]
        self.tensors = [t for d in self.owners for name, t in d.items() if t is not None and name != COUNTER]
        self.counted = [t for t in self.tensors if not t.is_inference()]
        self.versions, self.pointers = list(map(VERSION, self.counted)), list(map(Tensor.data_ptr, self.tensors))
        flat = [t.detach().reshape(-1) for t in self.tensors if t.is_cpu and t.is_contiguous() and t.numel()]
        self.seen = [t[len(t) // 2 :][:1].view(torch.int16)[:2] for t in flat]  # holds on to the memory
        self.values = [t.clone() for t in self.seen]


class _Look:
    """A quick look at whether modules still hold what they held.

    After a forward pass nothing of all this is left in the caches. Waiting for one piece after another would take as
    long as a twentieth of a forward pass: `near` has the addresses of the objects, which are fetched all at once.
    """

    def __init__(self, modules: Iterable[_Held]) -> None:
        modules = list(modules)

        def all_of(what: str) -> list[Any]:
            return list(chain.from_iterable(map(attrgetter(what), modules)))

        self.owners, self.entries = all_of("owners"), all_of("entries")
        self.tensors, self.pointers = all_of("tensors"), all_of("pointers")
        self.counted, self.versions = all_of("counted"), all_of("versions")
        self.values = torch.cat([torch.empty(0, dtype=torch.int16), *all_of("values")])
        places = [t.data_ptr() + 2 * i for t in all_of("seen") for i in range(len(t))]
        self.places = torch.tensor(places, dtype=torch.int64)
        objects = [*map(id, self.owners), *map(id, self.tensors), *(t._cdata for t in self.tensors)]
        self.near = torch.tensor(objects, dtype=torch.int64)

    def same(self) -> bool:
        return (
            torch.ops.msg3d_fast.same_values(self.places, self.values, self.near)
            and sum(map(len, self.owners)) == len(self.entries)
            and all(map(is_, chain.from_iterable(map(dict.values, self.owners)), self.entries))
            and list(map(VERSION, self.counted)) == self.versions
            and list(map(Tensor.data_ptr, self.tensors)) == self.pointers
        )


class Watch:
    """Notices that a model's weights are no longer those that it was made from.

    A tensor may be replaced, get other memory, or be written in place, which torch counts. It does not count what is
    written through `.data` or by batch normalisation: one element of each tensor is compared for that. Modules that
    nobody holds any more are forgotten by the next look, which frees their memory: once the model is gone there is
    nothing to look at.
    """

    def __init__(self, model: nn.Module) -> None:
        self._gone: list[weakref.ref] = []
        owners = [m for m in model.modules() if m._parameters or m._buffers]
        self._held = {weakref.ref(m, self._gone.append): _Held(m) for m in owners}
        self._look: _Look | None = _Look(self._held.values())

    def changed(self) -> bool:
        if self._gone:  # several threads may find it so
            self._gone.clear()
            self._held = {module: held for module, held in self._held.items() if module() is not None}
            self._look = _Look(self._held.values()) if self._held else None
        look = self._look
        return look is not None and not look.same()
