"""Every tolerance of the numeric tests, with its reason; other tests compare exactly."""

from __future__ import annotations

# OpenCV's blobFromImage multiplies in float32 where edge looks the value up: one rounding each.
BLOB_ATOL = 1e-6
# float32 sums and exponentials in another order than the float64 loop of the test.
DECODE_RTOL = 2e-5
# Boxes are differences of numbers up to the input's size: 416 px * 2^-24, several times.
BOX_ATOL_PX = 1e-3
# Letterbox there and back runs in float64; coordinates reach 1e5 px.
LETTERBOX_ATOL_PX = 1e-7

# The stored references come from other code: another convolution order, boxes with two decimals.
REFERENCE_IOU = 0.95
REFERENCE_SCORE = 0.02
# SqueezeDet's reference boxes are whole pixels: up to half a pixel on each side.
REFERENCE_ROUNDED_PX = 1.0

# torch and onnxruntime sum convolutions in another order; batch norm is folded into weights.
ONNX_ATOL = 1e-4
# The same float32 graph run with other fusions.
ORT_ATOL = 1e-5
# A 8-bit step of rounding may fall to the other side where float32 sums differ in the last bit.
HALF_STEP_SHARE = 0.01
# A level that flips in an early layer reaches many cells, by far less than the rounding's 42 dB.
FLIPPED_DB = 50.0

# FP16 keeps 11 bits, 66 dB for one rounding; some twenty layers of them leave 40 and more.
HALF_DB = 40.0
# One more rounding in front of each leaky activation, at the scale of the one behind it: at most
# as much noise again, which is 3 dB; half a dB for chance.
LOWERED_LOSS_DB = 3.5
# One layer, two roundings more at most; a third of the range clipped in error costs all but 15 dB.
BRANCH_DB = 25.0
# Networks of one to eight layers; quantizing them costs 25 dB and more.
LOWERED_DB = 18.0

# 256 candidates are 0.4 % of the peak apart and the error is flat about its minimum; bins add 1 %.
MSE_NEAR_OPTIMAL = 1.03
# Divergences are sums of some thousand float64 terms in another order.
ENTROPY_ATOL = 1e-9

# Python and numpy of 40 images less those of 5: no image may stay (one is 37 kB, 35 are 1.3 MB).
CALIBRATION_GROWTH_BYTES = 400_000

# Resident memory over a run, by its seconds. In the first minute allocators still grow; one
# frame of 640x360 kept per second would be 41. Twenty minutes average that out.
SOAK_MIB_PER_MINUTE = {60: 10.0, 1200: 1.0}

# OpenCV and Pillow invert CMYK with different roundings.
CMYK_ATOL = 1
