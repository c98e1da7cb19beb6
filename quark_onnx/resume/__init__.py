"""What a finetuning has done so far, kept on disk, so that the same call goes on from there."""
