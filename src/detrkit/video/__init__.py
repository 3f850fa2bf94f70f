"""Videos: prediction frame by frame, tracks, and videos with what was found drawn (extra `video`)."""

from detrkit.video.predicting import FrameResult, VideoReport, iter_video, predict_video

__all__ = ["FrameResult", "VideoReport", "iter_video", "predict_video"]
