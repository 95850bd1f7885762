"""The records of the run log."""

from hypothesis import given
from hypothesis import strategies as st

from roost.agent.log_format import Record, decode
from roost.agent.runs import Kind


@given(
    st.builds(
        Record, *(st.integers(0, 2**31) for _ in range(3)), st.floats(0, 1e10), st.sampled_from(Kind), st.binary()
    )
)
def test_decode_undoes_encode(record: Record) -> None:
    encoded = b"".join(record.encode())

    assert decode(encoded) == (record, len(encoded))


@given(st.binary(max_size=200))
def test_noise_is_no_record(noise: bytes) -> None:
    assert decode(noise) is None
