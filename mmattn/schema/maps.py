"""AttentionMaps: the layers of one forward pass, what the model was looking at, and where it came from."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

from torch import nn

from mmattn.errors import GoneError, InputError, NotFoundError, nearest
from mmattn.schema.composing import composed, way_to_patches
from mmattn.schema.layers import AttentionLayer, Kind
from mmattn.schema.media import Media
from mmattn.schema.rows import check_range
from mmattn.schema.source import Source

__all__ = ["AttentionLayer", "AttentionMaps"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttentionMaps:
    """What a model attended to in one forward pass.

    Parameters
    ----------
    layers
        In the order in which they ran.
    media
        One a sample; empty where only tensors were given.
    source
        Model, weights, adapter and versions.
    default_stream
        Which stream is meant when none is named.
    readout
        What the model reads its answer from: `cls`, `mean` (over content), `pool` (an attention
        pool), or empty where it is not known. It is the default query.
    classifies
        Whether the model's output was class logits; False where that is not known (a recording, a file).
    labels
        Class names by index, where the model has them.
    left_out
        Attention of the model that is no layer here, with the reason: one phrase each, such as
        `stages.2.blocks.1.xca: attention between channels`.
    rerun
        Runs the same input again (for gradients, edits, faithfulness); None for a loaded file.
    model_ref
        Returns the model, or None when it is gone.
    adapter, prepared
        Opaque here: who gave the layers their axes, and the input that it prepared; None for a loaded file.

    """

    layers: tuple[AttentionLayer, ...]
    media: tuple[Media, ...] = ()
    source: Source = field(default_factory=Source)
    default_stream: str = ""
    readout: str = ""
    classifies: bool = False
    labels: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    rerun: Callable[[], Any] | None = None
    model_ref: Callable[[], nn.Module | None] | None = None
    adapter: Any = None
    prepared: Any = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("These maps have no layer. A forward pass gives at least one. Check the capture.")

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[AttentionLayer]:
        return iter(self.layers)

    def __getitem__(self, name: str | int) -> AttentionLayer:
        """Return a layer by module path, or by index."""
        if isinstance(name, int):
            check_range([name], len(self.layers), "layer")
            return self.layers[name]
        found = [layer for layer in self.layers if layer.name == name]
        if not found:
            raise NotFoundError(
                f'There is no layer "{name}". Layers are: {nearest(name, [layer.name for layer in self.layers])}. '
                "Pass one of those names."
            )
        if len(found) > 1:
            raise NotFoundError(
                f'{len(found)} layers are called "{name}" (the module ran several times). '
                "One name must mean one layer. Pass an index instead."
            )
        return found[0]

    @property
    def sample_count(self) -> int:
        """Number of samples (inputs) in the batch."""
        return max(layer.sample_count for layer in self.layers)

    @property
    def samples(self) -> tuple["AttentionMaps", ...]:
        """The maps of each sample alone, sharing storage."""
        if self.sample_count == 1:
            return (self,)
        return tuple(
            replace(
                self,
                layers=tuple(layer.sample(index) for layer in self.layers),
                media=(self.media[index],) if self.media else (),
                rerun=None,
                prepared=None,
            )
            for index in range(self.sample_count)
        )

    @property
    def model(self) -> nn.Module:
        """The model that ran.

        Raises
        ------
        GoneError
            When it was deleted, or when the maps were loaded from a file.

        """
        model = None if self.model_ref is None else self.model_ref()
        if model is None:
            raise GoneError(
                "The model of these maps is gone. Maps keep a weak reference to a model that you passed, and a loaded "
                "file has none. Keep the model alive, or attend again."
            )
        return model

    def select(self, *, stream: str | None = None, kind: Kind | None = None) -> tuple[AttentionLayer, ...]:
        """Return the layers of a stream and kind, in order; None: the default stream, any kind.

        A stream has its branches with it: `vision` is also `vision.0` and `vision.1`.

        Raises
        ------
        NotFoundError
            When there are none; the streams and kinds that there are are listed.

        """
        wanted = (self.default_stream or None) if stream is None else stream
        found = [
            layer
            for layer in self.layers
            if (wanted is None or _within(layer.stream, wanted)) and kind in (None, layer.kind)
        ]
        if not found:
            asked = f'stream "{wanted}"' + (f" and kind {kind}" if kind else "")
            there = ", ".join(sorted({f"{layer.stream or '(no name)'} {layer.kind}" for layer in self.layers}))
            raise NotFoundError(f"No layer is of {asked}. There are: {there}. Pass stream= and kind= from those.")
        return tuple(found)

    def readout_in(self, stream: str | None = None) -> str:
        """Return what the answer of a stream is read from (None: of the default one); empty where that is not known.

        Examples
        --------
        >>> import torch
        >>> from mmattn.schema.axes import Positions
        >>> from mmattn.schema.weights import Blocks, Dense
        >>> axes, blocks = (Positions.count(2),), (Blocks(source=Dense(weights=torch.ones(1, 1, 2, 2))),)
        >>> layer = AttentionLayer(name="a", query=axes, key=axes, heads=1, storage=blocks, stream="vision")
        >>> maps = AttentionMaps(layers=(layer,), default_stream="vision", readout="mean")
        >>> maps.readout_in("vision.0"), maps.readout_in("text")
        ('mean', '')

        """
        return self.readout if not stream or not self.default_stream or _within(stream, self.default_stream) else ""

    def left_out_phrase(self) -> str:
        """Return what was left out in few words, counted by reason; empty where nothing was.

        Examples
        --------
        >>> import torch
        >>> from mmattn.schema.axes import Positions
        >>> from mmattn.schema.weights import Blocks, Dense
        >>> axes, blocks = (Positions.count(2),), (Blocks(source=Dense(weights=torch.ones(1, 1, 2, 2))),)
        >>> layer = AttentionLayer(name="a", query=axes, key=axes, heads=1, storage=blocks)
        >>> reason = "attention between channels"
        >>> AttentionMaps(layers=(layer,), left_out=(f"b: {reason}", f"c: {reason}")).left_out_phrase()
        '2 layers (attention between channels)'

        """
        counts: dict[str, int] = {}
        for phrase in self.left_out:
            reason = phrase.partition(": ")[2] or phrase
            counts[reason] = counts.get(reason, 0) + 1
        return ", ".join(f"{count} layer{'s' * (count > 1)} ({reason})" for reason, count in counts.items())

    def composed(self) -> "AttentionMaps":
        """Return the maps with attention to slots led on to the patches that the slots asked: CoCa's, a Q-Former's.

        A layer that was led on says so in its note, and holds its weights dense; others stay as they are.
        """
        led = [composed(layer, self.layers) if way_to_patches(layer, self.layers) else layer for layer in self.layers]
        return replace(self, layers=tuple(led))

    def named(
        self,
        *,
        weights: str | None = None,
        labels: tuple[str, ...] | None = None,
        model_ref: Callable[[], nn.Module | None] | None = None,
    ) -> "AttentionMaps":
        """Return these maps with what only the opener knows: the weights' name, class names, the model."""
        return replace(
            self,
            source=self.source if weights is None else replace(self.source, weights=weights),
            labels=labels or self.labels,
            model_ref=model_ref or self.model_ref,
        )

    def save(self, path: "str | PathLike[str]") -> None:
        """Write the maps to a safetensors file; `mmattn.load` reads it back."""
        from mmattn.schema.store import save

        save(self, path)

    def __repr__(self) -> str:
        head = f"AttentionMaps: {len(self.layers)} layer(s), {self.sample_count} sample(s) of {self.source.model}"
        lines = [f"{head}, {self.source.weights}"]
        if self.source.preprocessing:
            lines.append(f"  input   {self.source.preprocessing}")
        shown = self.layers if len(self.layers) <= 8 else (*self.layers[:4], None, *self.layers[-3:])
        for layer in shown:
            lines.append("  ..." if layer is None else f"  {layer!r}")
        errors = [layer.error for layer in self.layers if layer.error is not None]
        if self.left_out:
            lines.append(f"  left out {self.left_out_phrase()}")
        if errors:
            lines.append(f"  self-check: A V recomputed differs from the model's by at most {max(errors):.1e}")
        lines.append("  next: mmattn.look(maps), mmattn.rollout(maps), mmattn.head_grid(maps), maps.save(path)")
        return "\n".join(lines)


def _within(stream: str, wanted: str) -> bool:
    return stream == wanted or stream.startswith(f"{wanted}.")


def keep_weakly(model: nn.Module) -> Callable[[], nn.Module | None]:
    """Return a reference that does not keep the user's model alive."""
    return weakref.ref(model)


def keep(model: nn.Module) -> Callable[[], nn.Module | None]:
    """Return a reference that keeps a model that we opened ourselves."""
    return lambda: model
