"""In words, the numbers that a trial measures (defined in sims.unroll.trial and sims.unroll.experts)."""

NAMES = {
    "risk_trained": "risk, set alone",
    "risk_erased": "risk, head on erased rows",
    "off_points": "off-S* energy, points",
    "off_point_increments": "off-S* energy, increments of points",
    "off_rows": "off-S* energy, rows",
    "off_row_increments": "off-S* energy, increments of rows",
    "angle_points": "largest angle, points",
    "angle_row_increments": "largest angle, increments of rows",
    "expert_loss": "training loss at the last epoch",
    "expert_steps": "steps to it",
    "expert_distance": "distance from the start",
    "expert_sharpness": "sharpness S_rho",
    "expert_lambda": "lambda_max",
}
ENCODED = tuple(name for name in NAMES if not name.startswith("expert"))
