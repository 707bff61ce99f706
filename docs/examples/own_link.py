"""A link function as data: terms (coefficient, Hermite orders). Everything the theory says of it follows."""

from theory.multi_index import HermiteLink
from theory.predictions import distilled_points, row_ratio_leading, teacher_rows

# g(z) = 0.8 he_2(z_1) + 0.6 he_1(z_1) he_2(z_2), he_k the orthonormal Hermite polynomials
link = HermiteLink(((0.8, (2, 0)), (0.6, (1, 2))))
print("r", link.r, "degree", link.degree, "variance", link.variance)
print("mean Hessian", link.hessian.tolist(), "kappa", link.kappa)  # the second direction is lost: kappa is infinite

d, n = 64, 32 * 64**2
print("rows off S*  ", teacher_rows(link, 0.1, d, n).fraction, "leading order of the ratio", row_ratio_leading(link, 0.1, d, n))
print("points off S*", distilled_points(link, 0.1, d, n).fraction)
