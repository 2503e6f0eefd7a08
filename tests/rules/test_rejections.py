"""Why an event can't be billed, as it is kept."""

from metering.rules.rejections import Reason, Rejection


def test_a_detail_fits_a_text_column() -> None:
    rejection = Rejection(Reason.UNKNOWN_TIER, "tier a\0b\ud800c" + "é" * 1000)
    assert rejection.detail.startswith("tier a\\x00b\\ud800cééé")
    assert len(rejection.detail) == 500
