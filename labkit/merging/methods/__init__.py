"""The methods of merging, one file each. `METHODS` is the registry: a line makes a method known.

`labkit.merging.formula` says what a method is.
"""

from labkit.merging.formula import Method
from labkit.merging.methods.weighted_sum import WeightedSum

METHODS: dict[str, type[Method]] = {
    WeightedSum.name: WeightedSum,
}
"""What a recipe calls a method -> the method."""
