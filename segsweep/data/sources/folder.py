"""`folder`: the user's own images and masks, in two folders or in a table."""

from pathlib import Path

from segsweep.config.schema import DataConfig
from segsweep.data.source import FOLDERS, Pairs, existing_folder, files_by_key, listed, pair
from segsweep.errors import ConfigError, DataError


def find(data: DataConfig) -> Pairs:
    """Find pairs by stem, or in a table. Folders that hold train/ (val/ or valid/, test/) are taken as the split."""
    if data.table:
        return listed(Path(data.table).expanduser(), data.root)
    images = existing_folder("images", data.images, data.root)
    masks = existing_folder("masks", data.masks, data.root)
    if images == masks and not data.mask_suffix:
        raise ConfigError(
            f"data.images and data.masks are the same folder: {images}. Give two, or tell masks apart: "
            "data.mask_suffix=_mask."
        )
    parts = {part: name for part, names in FOLDERS.items() for name in names if (images / name).is_dir()}
    if not parts:
        return pair(images, masks, None, data.mask_suffix)
    if "train" not in parts:
        named = ", ".join(parts.values())
        raise DataError(f"{images}: holds {named}/ but no train/. Add it, or rename what is no split.")
    inside = tuple(f"{name}/" for name in parts.values())
    beside = [paths[0] for key, paths in files_by_key(images).items() if not key.startswith(inside)]
    found = [pair(images / name, masks / name, part, data.mask_suffix) for part, name in parts.items()]
    named = ", ".join(parts.values())
    problems = [f"{path}: lies beside {named}/, into which {images.name}/ is split" for path in beside]
    problems += [problem for pairs in found for problem in pairs.problems]
    return Pairs([sample for pairs in found for sample in pairs.samples], problems)
