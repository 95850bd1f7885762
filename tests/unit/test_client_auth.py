"""Signing, by the vectors of spec/auth.md §2.7."""

from datetime import datetime

import pytest
from yarl import URL

from roost.client.auth import generate_signature

ACCESS_KEY, SECRET_KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
JSON, BYTES, FORM, TEXT = "application/json", "application/octet-stream", "multipart/form-data", "text/plain"
V21, V22, V23 = "v6.20210815", "v6.20220315", "v7.20230615"
FIRST, WHOLE = "2021-09-28T01:23:45.678901+00:00", "2021-09-28T01:23:45+00:00"
VECTORS = {
    "A": (
        *("GET", "http://api.example.com:8081", "/session/mysess01?owner_access_key=AKIAOTHERKEY00000001"),
        *(FIRST, TEXT, V21, "sha256", "3b03675879f40c151c948f52f75bc8a3d64b0adbdf233cab5b947c5d11435fb3"),
    ),
    "B": (
        *("POST", "https://api.example.com", "/session", WHOLE, JSON, V21, "sha256"),
        "1263ba4b8fcd9d3caf4e5ee6028aa5bdb45d85c950514eef0b51567fcf43dd6f",
    ),
    "C": (
        *("GET", "http://127.0.0.1:8081", "/stream/session/mysess01/execute", "2022-04-01T00:00:00.000001+00:00"),
        *(BYTES, V22, "sha256", "2e6d58b370a19f86fd8929ab01b1a94046aad81fc21121ae6d16af7fd95f6e54"),
    ),
    "D": (
        *("POST", "http://127.0.0.1:8081", "/session/mysess01/upload", "2023-12-31T23:59:59.999999+00:00"),
        *(FORM, V23, "sha256", "06eb4aed9fe1c3694196cceff03faffd9fef681a75f13f28d0ffd6de0fee8da9"),
    ),
    "E": (
        *("GET", "http://api.example.com:8081", "/events/session?sessionName=mysess01&scope=%2A", FIRST, BYTES, V21),
        "sha512",
        "281158a91bea88549b61c71559082177db3b5946966ae544380366d1fb3029810762b36885ca3abc79d22bc20879773b958e3d3da6cdff5599a1195ec8a1b5ae",
    ),
}


def sign(method: str, endpoint: str, target: str, date: str, content_type: str, version: str, hash_type: str) -> str:
    headers, signature = generate_signature(
        method=method,
        version=version,
        endpoint=URL(endpoint),
        date=datetime.fromisoformat(date),
        rel_url=target,
        content_type=content_type,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        hash_type=hash_type,
    )
    expected = f"BackendAI signMethod=HMAC-{hash_type.upper()}, credential={ACCESS_KEY}:{signature}"
    assert headers["Authorization"] == expected
    return signature


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str) -> None:
    *request, signature = VECTORS[name]
    assert sign(*request) == signature


def test_a_default_port_changes_nothing_since_http_leaves_it_out() -> None:
    *request, signature = VECTORS["B"]
    request[1] = "https://api.example.com:443"
    assert sign(*request) == signature
