"""Pictures of procedural people with known silhouettes, and pairs with a known shift.

No benchmark contains these people: their pids follow those of the benchmark.
"""

from dataclasses import replace

import numpy as np

from shards.pedestrians.benchmarks import Benchmark
from shards.pedestrians.canvas import Pose
from shards.pedestrians.figure import draw_figure
from shards.pedestrians.scene import draw_camera, draw_view, render
from shards.pedestrians.synth import camera_key
from shards.pedestrians.wardrobe import draw_person
from tacaf.datasets import SYSU_MM01
from tacaf.vocabulary import Modality

CAMERAS = SYSU_MM01.cameras

Picture = tuple[np.ndarray, np.ndarray]  # pixels uint8 [H, W, 3], share of person in each float32 [H, W]


def known_picture(benchmark: Benchmark, pid: int, camid: int, modality: Modality, pose: Pose | None = None) -> Picture:
    """A picture by a benchmark's camera, without occlusion, in the given pose or in one drawn for this shot."""
    key = camera_key(camid, modality)
    camera = draw_camera(benchmark.seed, key, camid, modality, benchmark.difficulty)
    view = draw_view(benchmark.seed, pid, key, 1, camera, benchmark.difficulty)
    view = replace(view, occluder="none", pose=pose or view.pose)
    person = draw_person(benchmark.seed, pid)
    pixels_HWC = render(person, view, camera, modality, benchmark.height)
    rows, columns, _ = pixels_HWC.shape
    cut = draw_figure(person, view.pose, modality, rows, columns)
    silhouette_HW = np.zeros((rows, columns), np.float32)
    tall, wide = cut.cover.shape
    silhouette_HW[cut.top : cut.top + tall, cut.left : cut.left + wide] = cut.cover / 255
    return pixels_HWC, silhouette_HW


def pictures(benchmark: Benchmark, modality: Modality, people: int) -> list[Picture]:
    """One picture each of a number of people, by the modality's cameras in rotation."""
    cameras = CAMERAS[modality]
    first = benchmark.identities + 1
    return [known_picture(benchmark, first + i, cameras[i % len(cameras)], modality) for i in range(people)]


def moved_pair(benchmark: Benchmark, number: int, shift: float) -> tuple[Picture, Picture]:
    """A visible and an infrared picture of one person in the same pose, the second `shift` crop heights lower.

    As in a misplaced crop, parts of the feet or of the head are cut off.
    """
    cameras = [CAMERAS[modality][number % len(CAMERAS[modality])] for modality in Modality]
    pid, key = benchmark.identities + 1 + number, camera_key(cameras[0], Modality.VISIBLE)
    camera = draw_camera(benchmark.seed, key, cameras[0], Modality.VISIBLE, benchmark.difficulty)
    pose = draw_view(benchmark.seed, pid, key, 1, camera, benchmark.difficulty).pose
    pose = replace(pose, scale=1.0, shift_x=0.0)
    visible, infrared = (
        known_picture(benchmark, pid, camid, modality, replace(pose, shift_y=side * shift / 2))
        for camid, modality, side in zip(cameras, Modality, (-1, 1), strict=True)
    )
    return visible, infrared
