"""The k rows of a bank with the largest cosine similarities, exact in float64 and searched in float32.

A float32 matmul finds candidates, with a margin for its rounding errors that is proved below. Only they are compared in
float64. A query whose candidates are too many, as where features have collapsed, is compared with the whole bank.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ssl_zoo.precision import exact_matmuls

# The sizes of blocks bound the memory, regardless of the number of images; see ``working_bytes``.
QUERIES_AT_ONCE = 8192  # for which candidates are kept while the bank passes
_QUERIES_PER_BLOCK = 512
_BANK_PER_BLOCK = 8192
_EXACT_BANK_PER_BLOCK = 2048  # where all rows are compared in float64
_SPARE_CANDIDATES = 32
_GROUP = 32  # columns of which only the maximum is looked at first
_RERANKED_VALUES = 1 << 20  # candidates x dimensions compared in float64 at once


@dataclass(frozen=True)
class UnitRows:
    """Rows of float32 features that become unit vectors in float64 when they are needed.

    Norms are taken on the CPU, row by row; what follows is a division, so every device gives the same bits.

    Args:
        values: on the host; never copied as a whole.
        shift, scale: of the features before they are normalised, (x - shift) / scale in float32; None leaves them.
    """

    values: Float[Tensor, "n D"]
    device: torch.device
    shift: Float[Tensor, "D"] | None = None
    scale: Float[Tensor, "D"] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Int[Tensor, "*k"]) -> Float[Tensor, "*k D"]:
        values = self.values[rows if isinstance(rows, slice) else rows.cpu()]
        if self.shift is not None:
            values = (values - self.shift) / self.scale
        values = values.double()
        norms = torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp_min_(1e-12)
        return values.to(self.device).div_(norms.to(self.device))


def nearest_keys(queries: UnitRows, bank: UnitRows, rows: Int[Tensor, "n"], num_rows: int, k: int) -> Tensor:
    """Return the keys of the k nearest rows of the bank for each query, in descending order: (Q, min(k, n)).

    A key encodes similarity and row in one float64. The similarity is rounded to a grid (2^-36 for 50,000 rows) that is
    far above the errors of float64 and far below differences between images, and the row is subtracted in the bits
    below the grid. So no two keys are equal, and of equal similarities the first row wins. Keys of parts of a bank can
    be merged: those of the whole bank are the largest of all parts.

    Memory holds ``working_bytes`` besides the features.

    Args:
        rows: number of each row of the bank among the rows of all parts, ascending.
        num_rows: rows of all parts.
    """
    assert len(queries) <= QUERIES_AT_ONCE
    row_bits, k = bits_of(num_rows), min(k, len(bank))
    rows = rows.to(bank.device)
    if k == 0:
        return torch.empty(len(queries), 0, dtype=torch.float64, device=bank.device)
    with exact_matmuls():  # which the limit of their error presumes
        similarity, found, error = _candidates(queries, bank, min(k + _SPARE_CANDIDATES, len(bank)))
    # A row is nearer than the k-th candidate only if its float32 similarity is above this.
    lowest = similarity[:, k - 1 : k] - 2 * (error + 2.0 ** (row_bits - 52))
    count = (similarity >= lowest).sum(dim=1)
    is_decided = (count < similarity.shape[1]) | (similarity.shape[1] == len(bank))
    keys = similarity.new_empty(len(queries), k)
    decided, undecided = (flag.nonzero()[:, 0] for flag in (is_decided, ~is_decided))
    most = max(1, _RERANKED_VALUES // (bank.values.shape[1] * similarity.shape[1]))
    for part in (decided[block] for block in _slices(len(decided), most)):
        near = found[part, : count[part].max()]
        of_part = similarities(queries[part][:, None], bank[near])[:, 0]
        keys[part] = _encode(of_part, rows[near], row_bits).topk(k, dim=1).values
    for part in (undecided[block] for block in _slices(len(undecided), _QUERIES_PER_BLOCK)):
        keys[part] = _nearest_of_all(queries[part], bank, rows, row_bits, k)
    return keys


def decode(keys: Float[Tensor, "Q k"], num_rows: int) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """Return the similarities and row numbers of keys."""
    row_bits = bits_of(num_rows)
    similarity = keys.ceil()
    rows = ((similarity - keys) * 2.0**row_bits).long()
    return similarity * 2.0 ** (row_bits - 52), rows


def bits_of(num_rows: int) -> int:
    """Return how many bits a row number takes in a key."""
    return max(num_rows - 1, 1).bit_length()


def working_bytes(num_queries: int, dim: int, k: int) -> int:
    """Return the most bytes that a search takes besides the features, however large the bank is."""
    queries = min(num_queries, QUERIES_AT_ONCE)
    kept = queries * (4 * dim + 4 * 12 * (k + _SPARE_CANDIDATES) + 2 * 8 * k)  # as float32, candidates, keys
    # A block of the bank in float64 and twice in float32, half as much for freed blocks that the allocator keeps, two
    # blocks of similarities and what is looked into.
    search = 24 * dim * _BANK_PER_BLOCK + 4 * 4 * _QUERIES_PER_BLOCK * _BANK_PER_BLOCK
    compared = max(_RERANKED_VALUES, dim * _EXACT_BANK_PER_BLOCK)
    exact = 8 * (6 * compared + 4 * _QUERIES_PER_BLOCK * _EXACT_BANK_PER_BLOCK)
    return kept + max(search, exact)


def similarities(queries: Float[Tensor, "*b q D"], rows: Float[Tensor, "*b k D"]) -> Float[Tensor, "*b q k"]:
    """Compute dot products of unit rows to the same bits in every order of summation, with an error below D * 2^-50.

    Each entry is split into a multiple of 2^-26 and a rest of at most 2^-27, rounded to a multiple of 2^-r. Products of
    two multiples of 2^-26 are multiples of 2^-52 and add to less than 2. Their products with rests are multiples of
    2^-(26 + r) and add to at most sqrt(D) * 2^-27. Float64 holds 53 bits, hence all these sums are exact with
    r = 53 - log2(sqrt(D)), rounded down. Products of two rests are left out.
    """
    rest_bits = 53 - math.ceil(math.log2(queries.shape[-1]) / 2)
    (query_high, query_rest), (high, rest) = _split(queries, rest_bits), _split(rows, rest_bits)
    cross = query_high @ rest.mT
    cross += query_rest @ high.mT
    return (query_high @ high.mT).add_(cross)


def _split(values: Tensor, rest_bits: int) -> tuple[Tensor, Tensor]:
    high = (values * 2.0**26).round_().mul_(2.0**-26)
    rest = (values - high).mul_(2.0**rest_bits).round_().mul_(2.0**-rest_bits)
    return high, rest


def _encode(similarity: Tensor, rows: Tensor, row_bits: int) -> Tensor:
    """Return keys: similarity s in -1..1 and row i give the integer s * 2^52 - i, exact in float64, over 2^row_bits."""
    return (similarity * 2.0 ** (52 - row_bits)).round_().sub_(rows * 2.0**-row_bits)


def _candidates(
    queries: UnitRows, bank: UnitRows, count: int
) -> tuple[Float[Tensor, "Q count"], Int[Tensor, "Q count"], float]:
    """Return the largest similarities of float32, up to a constant per query, their rows, and a limit of their error.

    A common vector is subtracted from the rows of the bank, which changes all similarities of a query equally and
    makes their differences, and with them rounding errors, as small as the rows' spread. With u = 2^-24, the rounding
    of both factors to float32 and a sum of D products in any order change a dot product by at most
    (2 u + D u + ...) |query| |row| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    dim = bank.values.shape[1]
    centre = bank[slice(None, None, -(-len(bank) // 4096))].mean(dim=0)
    unit_queries = torch.cat([queries[block].float() for block in _slices(len(queries), 1024)])
    best = [
        (part.new_empty(len(part), 0), part.new_empty(len(part), 0, dtype=torch.int64))
        for part in _blocks(unit_queries)
    ]
    longest = 0.0
    for block in _slices(len(bank), _BANK_PER_BLOCK):
        longest = max(longest, _search_block(unit_queries, bank, block, centre, best, count))
    similarity, found = (torch.cat(tensors) for tensors in zip(*best, strict=True))
    return similarity.double(), found, 1.05 * (dim + 3) * 2.0**-24 * longest + dim * 2.0**-44


def _search_block(
    unit_queries: Float[Tensor, "Q D"],
    bank: UnitRows,
    block: slice,
    centre: Float[Tensor, "D"],
    best: list[tuple[Tensor, Tensor]],
    count: int,
) -> float:
    """Merge a block of the bank into ``best``, in place, and return the length of its longest centred row."""
    transposed, fill, longest = _centred(bank, block, centre)
    for number, part in enumerate(_blocks(unit_queries)):
        similarity = part @ transposed
        if fill:
            similarity[:, -fill:] = -torch.inf
        best[number] = _merged(*best[number], similarity, block.start, count)
    return longest


def _centred(bank: UnitRows, block: slice, centre: Float[Tensor, "D"]) -> tuple[Float[Tensor, "D B"], int, float]:
    """Return a block in float32, transposed, the number of zero rows that fill its last group, and its longest row."""
    rows = bank[block].sub_(centre)
    fill = -len(rows) % _GROUP
    return pad(rows.float(), (0, 0, 0, fill)).T, fill, float(torch.linalg.vector_norm(rows, dim=1).max())


def _merged(
    best: Float[Tensor, "Q c"], found: Int[Tensor, "Q c"], similarity: Float[Tensor, "Q n"], start: int, count: int
) -> tuple[Float[Tensor, "Q c"], Int[Tensor, "Q c"]]:
    """Return the ``count`` largest of those found so far and of a block, which starts at a row of the bank.

    Columns j, j + n / 32, ... are a group. Only groups whose maximum exceeds what has been found are looked into, if
    they are at most a quarter of all.
    """
    num_groups = similarity.shape[1] // _GROUP
    num_chosen = num_groups
    if best.shape[1] == count or 4 * count <= num_groups:
        maxima = similarity.view(len(similarity), _GROUP, num_groups).amax(dim=1)
        if best.shape[1] == count:
            num_chosen = int((maxima > best[:, -1:]).sum(dim=1).max())
        num_chosen = min(num_chosen, count)
    if num_chosen == 0:
        return best, found
    if 4 * num_chosen <= num_groups:
        groups = maxima.topk(num_chosen, dim=1).indices
        columns = (groups[:, None] + num_groups * torch.arange(_GROUP, device=groups.device)[:, None]).flatten(1)
        values = similarity.gather(1, columns)
    else:
        values, columns = similarity.topk(min(count, similarity.shape[1]), dim=1)
    values, rows = torch.cat([best, values], dim=1), torch.cat([found, columns.add_(start)], dim=1)
    best, order = values.topk(min(count, values.shape[1]), dim=1)
    return best, rows.gather(1, order)


def _nearest_of_all(queries: Float[Tensor, "Q D"], bank: UnitRows, rows: Tensor, row_bits: int, k: int) -> Tensor:
    """Return the keys of ``nearest_keys`` by comparing with every row in float64."""
    best = queries.new_empty(len(queries), 0)
    for block in _slices(len(bank), _EXACT_BANK_PER_BLOCK):
        keys = _encode(similarities(queries, bank[block]), rows[block], row_bits)
        best = torch.cat([best, keys.topk(min(k, keys.shape[1]), dim=1).values], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    return best


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _blocks(queries: Tensor) -> tuple[Tensor, ...]:
    return queries.split(_QUERIES_PER_BLOCK)
