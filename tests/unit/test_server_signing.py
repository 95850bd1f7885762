from datetime import UTC, datetime, timedelta

import pytest

from roost.server.auth.signing import (
    Credential,
    SignedRequest,
    parse_authorization,
    parse_date,
    sign,
    verify,
)
from roost.wire.errors import InvalidAuthParameters, NotAuthenticated

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOW = datetime(2021, 9, 28, 1, 23, 45, tzinfo=UTC)


def a_request(
    method: str = "POST",
    target: str = "/session",
    date: str = "2021-09-28T01:23:45+00:00",
    host: str = "api.example.com",
    content_type: str | None = "application/json",
    version: str = "v6.20210815",
    body: bytes = b"",
) -> SignedRequest:
    return SignedRequest(
        method=method, target=target, date=date, host=host, content_type=content_type, version=version, body=body
    )


A = a_request(
    "GET",
    "/session/mysess01?owner_access_key=AKIAOTHERKEY00000001",
    "2021-09-28T01:23:45.678901+00:00",
    "api.example.com:8081",
    "text/plain",
)
B = a_request(body=b"not covered")
C = a_request(
    "GET", "/stream/session/mysess01/execute", "2022-04-01T00:00:00.000001+00:00", "127.0.0.1:8081", None, "v6.20220315"
)
D = a_request(
    "POST",
    "/session/mysess01/upload",
    "2023-12-31T23:59:59.999999+00:00",
    "127.0.0.1:8081",
    "multipart/form-data; boundary=x",
    "v7.20230615",
)
E = a_request(
    "GET",
    "/events/session?sessionName=mysess01&scope=%2A",
    "2021-09-28T01:23:45.678901+00:00",
    "api.example.com:8081",
    None,
)
LEGACY = a_request(
    target="/v3/kernel/create", date="2018-01-02T03:04:05+00:00", version="v3.20170615", body=b'{"lang":"python3"}'
)


@pytest.mark.parametrize(
    ("request_", "hash_name", "signature"),
    [
        pytest.param(A, "sha256", "3b03675879f40c151c948f52f75bc8a3d64b0adbdf233cab5b947c5d11435fb3", id="A"),
        pytest.param(B, "sha256", "1263ba4b8fcd9d3caf4e5ee6028aa5bdb45d85c950514eef0b51567fcf43dd6f", id="B"),
        pytest.param(C, "sha256", "2e6d58b370a19f86fd8929ab01b1a94046aad81fc21121ae6d16af7fd95f6e54", id="C"),
        pytest.param(D, "sha256", "06eb4aed9fe1c3694196cceff03faffd9fef681a75f13f28d0ffd6de0fee8da9", id="D"),
        pytest.param(
            E,
            "sha512",
            "281158a91bea88549b61c71559082177db3b5946966ae544380366d1fb302981"
            "0762b36885ca3abc79d22bc20879773b958e3d3da6cdff5599a1195ec8a1b5ae",
            id="E",
        ),
        pytest.param(LEGACY, "sha256", "710359b20484ad5821ab5b257f3e675149e034a9c249d1b9408b22e465f3c5f4", id="L"),
    ],
)
def test_signatures_equal_the_worked_vectors(request_: SignedRequest, hash_name: str, signature: str) -> None:
    when = datetime.fromisoformat(request_.date)

    assert sign(request_, SECRET, when, hash_name) == signature
    verify(request_, Credential(hash_name=hash_name, access_key="AK", signature=signature), SECRET, when)


def test_the_key_is_derived_with_the_calendar_day_of_the_headers_own_offset() -> None:
    when = parse_date("2021-09-28T10:23:45+09:00", NOW)
    late = when.replace(day=29)

    assert sign(A, SECRET, when) != sign(A, SECRET, late)
    assert when.utcoffset() == timedelta(hours=9)


def test_a_default_port_that_only_the_client_signed_is_accepted() -> None:
    signed = a_request(host="api.example.com:80")
    credential = Credential(hash_name="sha256", access_key="AK", signature=sign(signed, SECRET, NOW))

    verify(a_request(), credential, SECRET, NOW)


def test_a_wrong_signature_is_refused() -> None:
    with pytest.raises(NotAuthenticated):
        verify(A, Credential(hash_name="sha256", access_key="AK", signature="0" * 64), SECRET, NOW)


@pytest.mark.parametrize(
    "text", ["Tue, 28 Sep 2021 01:23:45 GMT", "20210928T012345Z", "2021-09-28T01:23:45", "2021-09-28T10:23:45+09:00"]
)
def test_every_usual_form_of_a_date_is_read(text: str) -> None:
    assert parse_date(text, NOW) == NOW


@pytest.mark.parametrize("text", [None, "", "yesterday-ish", "2021-09-28T01:38:45Z", "2021-09-28T01:08:45Z"])
def test_missing_unreadable_and_far_dates_are_refused(text: str | None) -> None:
    with pytest.raises(InvalidAuthParameters):
        parse_date(text, NOW)


@pytest.mark.parametrize("text", ["", "Basic abc", "BackendAI signMethod=HMAC-MD5, credential=a:b", "BackendAI x"])
def test_malformed_authorization_is_refused(text: str) -> None:
    with pytest.raises(InvalidAuthParameters):
        parse_authorization(text)
