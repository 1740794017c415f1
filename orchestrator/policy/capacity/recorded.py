"""Spells of recorded spot markets by class of age. Written by `benchmarks/spot_priors.py`; not edited by hand.

Counted from the public repository skypilot-org/spot-traces (data of Wu et al., "Can't Be Late", NSDI 2024; AWS October 2022 to
August 2023, Google Cloud April 2023): how many spells ended at an age of each class, and for how many hours spells of that age
were watched. Only these counts are kept.
"""

from __future__ import annotations

EDGES_SECONDS = (900, 3600, 14400)
"""Where one class of ages ends and the next begins."""
RECORDED: tuple[tuple[str, tuple[int, ...], tuple[float, ...], tuple[int, ...], tuple[float, ...]], ...] = (
    (
        "availability/1-node/aws-02-15-2023/us-east-1c_v100_1",
        (104, 109, 90, 41),
        (78.1, 130.1, 221.2, 153.1),
        (112, 129, 69, 33),
        (77.7, 112.3, 160.2, 158.5),
    ),
    (
        "availability/1-node/aws-02-15-2023/us-east-1d_v100_1",
        (74, 98, 83, 39),
        (68.1, 117.3, 202.9, 215.3),
        (81, 117, 61, 34),
        (67.4, 103.8, 151.8, 164.9),
    ),
    (
        "availability/1-node/aws-02-15-2023/us-east-2a_v100_1",
        (42, 54, 29, 21),
        (33.3, 49.7, 100.1, 79.7),
        (35, 40, 33, 37),
        (33.9, 65.1, 151.5, 548.0),
    ),
    (
        "availability/1-node/aws-02-15-2023/us-east-2b_v100_1",
        (43, 53, 50, 29),
        (40.3, 71.2, 147.0, 88.5),
        (35, 48, 48, 43),
        (41.1, 80.2, 190.5, 431.2),
    ),
    (
        "availability/1-node/aws-02-15-2023/us-west-2a_v100_1",
        (34, 89, 29, 6),
        (37.0, 43.7, 37.5, 9.4),
        (32, 46, 37, 43),
        (37.0, 71.8, 168.3, 630.3),
    ),
    (
        "availability/1-node/aws-02-15-2023/us-west-2b_v100_1",
        (19, 49, 20, 6),
        (21.9, 30.6, 40.8, 10.4),
        (25, 18, 21, 30),
        (21.6, 43.0, 113.5, 732.2),
    ),
    (
        "availability/1-node/aws-10-26-2022/us-west-2a_k80_1",
        (85, 36, 10, 1),
        (25.9, 15.4, 7.8, 20.5),
        (28, 37, 28, 39),
        (30.7, 58.2, 152.8, 332.0),
    ),
    (
        "availability/1-node/aws-10-26-2022/us-west-2a_k80_8",
        (37, 36, 44, 18),
        (30.7, 58.8, 94.0, 200.7),
        (25, 53, 43, 14),
        (31.7, 58.2, 79.5, 42.5),
    ),
    (
        "availability/1-node/aws-10-26-2022/us-west-2a_v100_1",
        (41, 53, 24, 8),
        (28.1, 38.1, 46.3, 22.2),
        (40, 33, 28, 25),
        (28.2, 47.5, 98.3, 288.2),
    ),
    (
        "availability/1-node/aws-10-26-2022/us-west-2b_k80_8",
        (120, 49, 53, 23),
        (51.2, 73.9, 124.0, 134.7),
        (57, 107, 72, 10),
        (56.7, 88.7, 93.7, 25.7),
    ),
    (
        "availability/1-node/aws-10-26-2022/us-west-2b_v100_1",
        (84, 42, 28, 18),
        (36.0, 43.3, 80.0, 25.2),
        (35, 45, 54, 37),
        (39.8, 80.5, 164.5, 175.0),
    ),
    (
        "availability/1-node/aws-10-26-2022/us-west-2b_v100_8",
        (226, 112, 43, 19),
        (81.2, 77.0, 96.5, 92.2),
        (188, 134, 62, 15),
        (84.1, 91.6, 95.0, 31.5),
    ),
    (
        "availability/16-node/aws-08-27-2023/us-west-2a_v100_1",
        (21, 32, 28, 11),
        (20.8, 40.0, 52.2, 116.7),
        (30, 37, 18, 6),
        (19.8, 25.2, 26.4, 89.2),
    ),
    (
        "availability/16-node/aws-08-27-2023/us-west-2c_v100_1",
        (14, 28, 30, 10),
        (18.8, 38.8, 50.9, 122.3),
        (19, 42, 17, 3),
        (18.2, 23.6, 23.9, 93.7),
    ),
    (
        "preemption/1-node/aws-04-19-2023/us-east-1b_intel_64",
        (46, 14, 7, 0),
        (9.5, 9.4, 3.8, 0.0),
        (26, 17, 16, 7),
        (12.3, 22.2, 43.0, 49.9),
    ),
    (
        "preemption/1-node/aws-04-19-2023/us-east-1d_intel_64",
        (20, 5, 3, 0),
        (4.0, 4.6, 0.5, 0.0),
        (4, 3, 7, 13),
        (6.2, 15.3, 46.4, 68.8),
    ),
    (
        "preemption/1-node/aws-04-22-2023/us-east-1c_v100_1",
        (13, 15, 6, 7),
        (9.0, 14.1, 28.8, 66.1),
        (17, 12, 6, 6),
        (8.1, 12.6, 23.9, 11.1),
    ),
    (
        "preemption/1-node/aws-04-22-2023/us-west-2c_v100_1",
        (26, 17, 13, 2),
        (11.0, 16.7, 14.9, 5.1),
        (17, 15, 14, 11),
        (11.9, 23.8, 47.8, 40.3),
    ),
    (
        "preemption/1-node/gcp-04-30-2023/us-central1-a_c3-88",
        (1, 0, 0, 0),
        (0.0, 0.0, 0.0, 0.0),
        (0, 0, 0, 0),
        (0.0, 0.0, 0.0, 0.0),
    ),
    (
        "preemption/4-node/aws-08-03-2023/us-east-2a_v100_1",
        (22, 7, 3, 3),
        (6.7, 6.3, 9.6, 100.2),
        (4, 4, 13, 15),
        (8.5, 21.8, 56.7, 217.6),
    ),
    (
        "preemption/4-node/aws-08-03-2023/us-west-2c_v100_1",
        (16, 46, 26, 2),
        (21.1, 34.1, 27.2, 7.6),
        (7, 23, 38, 22),
        (21.8, 51.2, 99.9, 161.5),
    ),
)
"""Name; gaps ended, hours in gaps; offers ended, hours in offers."""
