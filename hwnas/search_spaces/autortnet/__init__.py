"""AutoRTNet: real-time segmentation networks; ops, depth, downsampling and aggregation are searched together.

Sun et al., "Real-Time Semantic Segmentation via Auto Depth, Downsampling Joint Decision and Feature
Aggregation", arXiv 2003.14226, IJCV 2021. No code was released with the paper; docs/autortnet.md lists what
it states, what is inferred and what is this reconstruction's choice.
"""

from hwnas.search_spaces.autortnet.space import AutoRTNet as AutoRTNet
