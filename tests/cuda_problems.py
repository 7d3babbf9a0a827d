"""Convolutions that the tests of the CUDA kernels run, forward and backward."""

from dataclasses import replace

from resnext_kernels.problem import ConvProblem

# Every width, the block of 64 channels met and missed, C_out of a multiple of C_in; images that share a block's 32
# positions, are cut by it, or are one pixel wide; rows that end a block or an
# image; sizes unlike in both dimensions.
PROBLEMS = [
    "n1_c64_h9_w33_g64", "n2_c64_h7_g32", "n2_c64_h7_g16", "n3_c64_h5_w6_g8", "n2_c128_h6_w40_g8", "n5_c64_h7_g2",
    "n1_c32_h4_w3_g8", "n1_c96_h5_w11_g6", "n2_c40_h6_g10", "n40_c8_h3_w1_g2", "n1_c16_h1_w2_g4", "n1_c64_h20_w8_g4",
    "n2_c32_o64_h6_g8", "n1_c32_o64_h5_g4", "n1_c32_o64_h5_w9_g2", "n1_c16_o48_h5_g2", "n1_c32_o64_h4_g1",
    "n2_c12_h6_g2", "n1_c42_h5_g3", "n1_c56_h5_g2", "n1_c48_h7_g2", "n2_c20_h5_g2", "n1_c12_o24_h5_g2", "n1_c84_h5_g6",
    "n2_c64_h9_w34_g16_s2", "n2_c64_h8_g8_s2", "n3_c64_h7_g2_s2", "n1_c64_h3_w70_g4_s2", "n1_c28_h9_g2_s2",
    "n1_c32_o64_h7_g4_s2", "n45_c16_h2_w1_g4_s2",
    "n1_c64_h9_g16_p2_d2", "n2_c32_h12_w37_g1_p4_d4", "n1_c28_h7_g2_p2_d2", "n3_c16_h5_w7_g4_p1_d3",
    "n1_c16_h9_w5_g2_p4_d4", "n1_c64_h7_g16_p0", "n2_c32_h6_g1_p0", "n1_c16_h4_g2_p2", "n1_c64_h9_g8_p0_s2",
    "n1_c16_h4_g2_p3_s2", "n1_c64_o32_h6_g8", "n2_c32_o16_h5_w9_g2_s2",
    "n2_c16_h6_w7_g2_p0x1", "n1_c32_h8_w7_g8_p2x0_s2", "n1_c16_h9_w8_g2_p1x2_d1x2", "n1_c16_h9_w8_g2_p2x0_d2x1",
]  # fmt: skip
# What float32 takes besides, and tensor cores do not: inputs for one thread and one more, groups that do not pack,
# blocks without rows, taps apart along one axis or both, slabs of inputs that the group does not fill.
ONLY_FLOAT32 = [
    "n2_c9_h5_g3", "n1_c25_h7_g5_s3", "n1_c80_h6_g2", "n1_c6_o9_h7_w5_g3_p2_d2_s2", "n1_c64_h9_g1", "n1_c12_h4_g4",
    "n1_c18_h9_w5_g2_p4_d4", "n1_c3_h5_g3", "n1_c6_h5_g3", "n1_c24_h7_g2_s3", "n1_c24_h7_w9_g2_s2x1",
    "n2_c16_h7_g4_s1x2", "n1_c72_h3_g1", "n1_c70_o6_h5_w6_g1_s2",
]  # fmt: skip


def nhwc(text, dtype):
    """As ConvProblem.parse, in channels last."""
    return replace(ConvProblem.parse(text), dtype=dtype, layout="nhwc")
