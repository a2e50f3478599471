"""What about a dataset is told before a head is trained or scored on it: doubtful labels, images not extracted yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.core.labels import SEPARATOR, contradictions, doubts
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.core.progress import Progress
    from featcache.store import FeatureStore
    from featcache.training.dataset import FeatureDataset


def note_labels(dataset: FeatureDataset, progress: Progress) -> None:
    """Tell of labels that look like splits or measures, and of equal images with different labels.

    Args:
        dataset: one label an image, or several.
        progress: gets the notes.
    """
    if dataset.labels is None:
        texts = [str(label) for label in dataset.y]
        for note in doubts(texts):
            progress.note(note)
    else:
        texts = [SEPARATOR.join(n for n, has in zip(dataset.labels, row, strict=True) if has) for row in dataset.y]
    named = ((item.sha256, text, item.uri) for item, text in zip(dataset.items, texts, strict=True))
    if found := contradictions(named):
        progress.note(found)


def left_out(dataset: FeatureDataset) -> str:
    """How many labeled images are missing for want of vectors, in words; nothing where none is.

    Other heads may have them, so this goes into the protocol of a score.
    """
    lacking = dataset.without_vectors
    if not lacking:
        return ""
    named = repr(dataset.layers[0]) if len(dataset.layers) == 1 else f"all {len(dataset.layers)} layers"
    return (
        f"{lacking:,} of {counted(lacking + len(dataset.items), 'labeled images')} without vectors of {named} left out"
    )


def note_incomplete(store: FeatureStore | None, dataset: FeatureDataset, progress: Progress) -> None:
    """Tell how many labeled images have no vectors, how many are not extracted yet in this space, and which classes.

    What a network that was trained itself sees is in no space of the store; then there is nothing to tell.

    Args:
        store: where it comes from; None if from a file.
        dataset: of one or more sources.
        progress: gets the notes.
    """
    if told := left_out(dataset):
        progress.note(
            f"{told[0].upper()}{told[1:]}, so the score is not that of all; `featcache extract` computes them."
        )
    if store is None or (dataset.recipe is not None and dataset.recipe not in [one.recipe for one in store.spaces]):
        return
    # Vectors of a fine-tuned network are in no space of the store.
    wanted = None if dataset.recipe is None else dataset.recipe.fingerprint
    space = next((one.fingerprint for one in store.spaces if one.fingerprint == wanted), None)
    for source in sorted({item.source for item in dataset.items} & store.sources().keys()):
        for note in store.incomplete(source, space=space):
            progress.note(note)
