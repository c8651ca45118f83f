"""Single numbers of every dtype of safetensors, without torch."""

from __future__ import annotations

import math
import struct

# struct's names of them
CODES = {
    "F16": "<e",
    "F32": "<f",
    "F64": "<d",
    "I8": "<b",
    "I16": "<h",
    "I32": "<i",
    "I64": "<q",
    "U8": "<B",
    "U16": "<H",
    "U32": "<I",
    "U64": "<Q",
}
# Floats of one byte: bits of the fraction, bias of the exponent, and the bytes, sign aside, from
# which on they are no numbers; of the last two only "minus zero" is none.
EIGHT_BITS = {
    "F8_E4M3": (3, 7, 0x7F),
    "F8_E5M2": (2, 15, 0x7D),
    "F8_E4M3FNUZ": (3, 8, 0x80),
    "F8_E5M2FNUZ": (2, 16, 0x80),
}
SCALE = "F8_E8M0"  # an exponent alone
INFINITE = {"F8_E5M2": 0x7C}


def number_of(dtype: str, raw: bytes) -> float | None:
    """The value of one element of a dtype, by safetensors' name of it; None for a dtype whose
    elements are no numbers.

    Raises struct.error where `raw` is not as long as one element.
    """
    if dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    if dtype in CODES:
        return float(struct.unpack(CODES[dtype], raw)[0])
    if dtype == SCALE:
        (byte,) = struct.unpack("<B", raw)
        return math.nan if byte == 0xFF else 2.0 ** (byte - 127)
    if dtype in EIGHT_BITS:
        return _of_eight_bits(dtype, struct.unpack("<B", raw)[0])
    return None


def _of_eight_bits(dtype: str, byte: int) -> float:
    bits, bias, first_none = EIGHT_BITS[dtype]
    size = byte & 0x7F
    if size >= first_none or (first_none == 0x80 and byte == 0x80):
        return math.nan
    sign = -1.0 if byte & 0x80 else 1.0
    if size == INFINITE.get(dtype):
        return sign * math.inf
    exponent, fraction = size >> bits, (size & ((1 << bits) - 1)) / (1 << bits)
    whole = min(exponent, 1)  # 0: without the leading 1, as small as the smallest exponent
    return sign * math.ldexp(whole + fraction, max(exponent, 1) - bias)
