"""What an adapter is: the one seat between a model library and the schema, ours and third parties' alike.

An adapter is found by entry point (group `mmattn.adapters`, the entry named `library.modality`).
It lives here, below the adapters, so that they can name these types without importing the doors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from mmattn.interception.calls import Call, Emit
from mmattn.schema.axes import Axis
from mmattn.schema.maps import AttentionLayer
from mmattn.schema.media import Media


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A model opened by name, ready to run.

    Parameters
    ----------
    model
        In eval mode.
    processor
        What the adapter's `prepare` takes as `processor`, or None for the model's own.
    labels
        Class names by index, where the model has them.
    weights
        Which weights these are, for captions.
    """

    model: nn.Module
    processor: Any = None
    labels: tuple[str, ...] | None = None
    weights: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """An input made ready for one model.

    Parameters
    ----------
    run
        Runs the model on it (the call, or generate) and returns the output.
    inputs
        The tensors that `run` passes to the model, in order: a recording is compared with them.
    media
        One medium a sample, as the user's eye or ear had it; empty where only tensors were given.
    facts
        What `layers` needs to build axes; the adapter's own.
    preprocessing
        One phrase for captions.
    readout
        What the model reads its answer from, for `AttentionMaps.readout`: `cls`, `mean`, `pool`, or empty.
    """

    run: Callable[[], Any]
    inputs: tuple[Tensor, ...] = ()
    media: tuple[Media, ...] = ()
    facts: Any = None
    preprocessing: str = ""
    readout: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """One line of `mmattn models`.

    Parameters
    ----------
    name
        What to pass to `--model`, or a pattern such as `timm:vit_*`.
    what, how_exact, source
        What it is; which parts are exact; where its weights come from.
    """

    name: str
    what: str
    how_exact: str
    source: str


@dataclass(frozen=True, kw_only=True)
class MediaGiven:
    """What the user passed to `attend`, by modality; readers have made media of paths."""

    image: Any = None
    text: Any = None
    audio: Any = None
    video: Any = None
    graph: Any = None
    inputs: Any = None
    generate: int | None = None


@runtime_checkable
class Adapter(Protocol):
    """The ten questions that `attend` asks. Missing `taps` or `score` abilities raise ModelError."""

    name: str
    default_stream: str

    def claims(self, model: nn.Module) -> bool:
        """Whether this adapter reads models of this class."""
        ...

    def opens(self, config: Mapping[str, Any]) -> bool:
        """Whether a Hugging Face config.json (its `architectures`) is one of ours."""
        ...

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open a model by the library's own name, or with the `weights` that the catalog found."""
        ...

    def models(self) -> Iterable[ModelFamily]:
        """What can be attended, for `mmattn models`."""
        ...

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Make the input ready and keep the facts that axes need."""
        ...

    def taps(self, model: nn.Module, emit: Emit) -> AbstractContextManager[None]:
        """Extra points of interception; `contextlib.nullcontext()` for most."""
        ...

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Say which axes each call joins."""
        ...

    def score(self, output: Any, target: Any) -> Tensor:
        """Return the scalar that a target names; raises ModelError without logits."""
        ...


@runtime_checkable
class LeavesOut(Protocol):
    """What an adapter may have beside `Adapter`: the attention of which it makes no layer, and why."""

    def left_out(self, calls: Sequence[Call], prepared: Prepared) -> tuple[str, ...]:
        """Return one phrase for each attention that is no layer: `module path: reason`."""
        ...


@runtime_checkable
class Classifies(Protocol):
    """What an adapter of classifiers may have beside `Adapter`, so that a top class can be found and named."""

    def logits(self, output: Any) -> Tensor:
        """Return the class logits `[sample, class]` of an output; raises ModelError without a classifier."""
        ...


@runtime_checkable
class NamesClasses(Protocol):
    """What an adapter may have beside `Adapter` where models carry the names of their classes."""

    def labels(self, model: nn.Module) -> tuple[str, ...] | None:
        """Return class names by index, or None where the model has none."""
        ...


@runtime_checkable
class TakesSizes(Protocol):
    """What an adapter of pictures may have beside `Adapter`: options from the sizes that a command line names."""

    def image_options(self, *, size_px: int | None, keep_aspect: bool) -> Any:
        """Return the adapter's own options: the side of the model's input, and whether the picture keeps its aspect."""
        ...


@runtime_checkable
class TwoTowers(Protocol):
    """What an adapter of two towers may have beside `Adapter`, so that the words of a text and patches can be linked.

    Pictures and texts are prepared each by themselves; the layers of the towers are of the streams `vision` and `text`.
    """

    def has_two_towers(self, model: nn.Module) -> bool:
        """Whether a picture and a text meet in their features alone in this model."""
        ...

    def image_features(self, model: nn.Module, prepared: Prepared) -> Tensor:
        """Return the features `[picture, feature]` of length one, with gradients where they are on."""
        ...

    def text_features(
        self, model: nn.Module, prepared: Prepared, *, blank: bool = False, brief: bool = False
    ) -> Tensor:
        """Return the features `[text, feature]` of length one.

        Parameters
        ----------
        blank
            With padding in place of every piece.
        brief
            The tower may leave out the positions behind the last token that is no padding, where no feature depends on
            them: the same features, sooner.
        """
        ...

    def text_axes(self, prepared: Prepared) -> tuple[Axis, ...]:
        """Return what the tokens of each prepared text are, as the layers of its tower have them."""
        ...

    def compare(self, model: nn.Module, *, image: Tensor, text: Tensor) -> Tensor:
        """Return the model's own logits `[picture, text]` of features."""
        ...


@runtime_checkable
class SharesPicture(Protocol):
    """What an adapter may have beside `Adapter`, so that one look at a picture serves all texts held against it."""

    def picture_tower(self, model: nn.Module) -> str:
        """Return the path of the module that turns pixels into tokens, samples first; empty where there is none."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores:
    """What a model in which words and patches meet says of each picture with its text.

    Parameters
    ----------
    values
        `[pair]`: what it gives.
    unit
        What that is, such as `probability of a match` or `log-likelihood per token`.
    targets
        `[pair]`: the logit that a gradient starts from; None where each word has one of its own.
    words
        `[pair, token]`: the logit of each token of the text in a model that writes texts. It is given by the row
        before: row i was asked for the token at i + 1. None for models that judge a whole text.
    """

    values: Tensor
    unit: str
    targets: Tensor | None = None
    words: Tensor | None = None


@runtime_checkable
class ScoresPairs(Protocol):
    """What an adapter may have beside `Adapter` where a model judges a picture with a text, or writes the text."""

    def pair_scores(self, output: Any, prepared: Prepared) -> PairScores:
        """Return what an output says of each pair, with gradients where they are on; raises ModelError without."""
        ...
