"""What a model has to be given, where its sites are apart: made of sums, handed out if all of them agree.

The sums of preprocessing are known to the server and to every node, for each needs them to train. Whether those
who get the model get them too is each site's own decision (``inputs`` in the rule of a dataset): without them
nobody can apply the model to new rows, and they are means and scales of the sites' patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.data.inputs import Inputs
from atoll.data.preprocessing import finish
from atoll.data.schema import Schema
from atoll.job.datasets import own_arrays
from atoll.job.schema import JobSpec
from atoll.job.sites import plan_of

__all__ = ["inputs_of", "released"]


def inputs_of(spec: JobSpec, schema: Schema, sums: Mapping[str, Array]) -> Inputs | None:
    """The columns and the preprocessor that all sites have; None where they have none together.

    Args:
        spec: the job.
        schema: what the sites agree on.
        sums: what their sums of columns add up to.
    """
    if own_arrays(spec.data) or spec.preprocessing.mode != "federated":
        return None
    return Inputs(schema.features, finish(sums, plan_of(spec), schema))


def released(
    spec: JobSpec, inputs: Inputs | None, against: Sequence[ClientId]
) -> tuple[Inputs | None, list[str]]:
    """What is handed out, and the note on what is not.

    Args:
        spec: the job.
        inputs: see :func:`inputs_of`.
        against: sites that do not agree to it.
    """
    if inputs is None:
        return None, []
    if spec.privacy.private:
        return None, [f"{_NONE}, for no account of differential privacy has them"]
    if not against:
        return inputs, []
    named = ", ".join(against[:5]) + (f" and {len(against) - 5} more" if len(against) > 5 else "")
    return None, [f"{_NONE}, for these sites do not hand them out: {named}. {_WAY}"]


_NONE = "no inputs.json: means and scales of preprocessing are not told with the model"
_WAY = (
    "Their stewards may (atoll node data rule NAME --inputs), where no count of few persons follows"
)
