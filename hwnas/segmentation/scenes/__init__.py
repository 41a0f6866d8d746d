"""The painter of synthetic street scenes; its face is :func:`draw_scene`."""

from hwnas.segmentation.scenes.scene import draw_scene as draw_scene
