"""What the processor computes fast, by the kernel's list."""

from pathlib import Path

import pytest

from shared.processor import has_bfloat16

ZEN_3 = "processor\t: 0\nflags\t\t: fpu vme sse4_2 avx2 bmi1 vaes fsrm\nbugs\t\t: bf16\n"
ZEN_4 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 vaes\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd sve i8mm bf16 dgh\n"


@pytest.mark.parametrize(("listed", "found"), [(ZEN_3, False), (ZEN_4, True), (GRAVITON_3, True), ("", False)])
def test_instructions_for_bfloat16_are_known_from_the_kernels_list(tmp_path: Path, listed: str, found: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(listed)
    assert has_bfloat16(file) is found


def test_without_the_list_float32_is_the_safe_choice(tmp_path: Path) -> None:
    assert not has_bfloat16(tmp_path / "cpuinfo")
