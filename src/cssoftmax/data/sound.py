"""Decode sounds to log-mel spectrograms."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cssoftmax.data.progress import track
from cssoftmax.data.table import DataError, Table

Array = np.ndarray[Any, Any]

BATCH = 64
"""Sounds that are transformed together."""
BLOCK = 2**20
"""Frames of a sound that are decoded together."""
MOST_VALUES = 2**28
"""Sounds of more values than this, over all channels, are refused: three quarters of an hour in stereo."""
DYNAMIC_RANGE = 80.0
"""Decibels below a clip's loudest value at which the spectrogram is cut."""


@dataclass(frozen=True)
class LogMel:
    """How a sound becomes a log-mel spectrogram (mels, frames).

    Attributes:
        sample_rate: rate in Hz to which sounds are resampled.
        duration: seconds to which sounds are cut or zero-padded, about their centre.
        mels: number of mel bands.
        n_fft: window of the Fourier transform, in samples.
        hop: samples from one frame to the next.
    """

    sample_rate: int
    duration: float
    mels: int = 64
    n_fft: int = 1024
    hop: int = 512


NAMED = {
    "fsdd": LogMel(sample_rate=8000, duration=1.0, mels=64, n_fft=512, hop=128),
    "esc10": LogMel(sample_rate=22050, duration=5.0, mels=64, n_fft=1024, hop=512),
}
"""Parameters of the named data sets: 64 x 63 for fsdd, 64 x 216 for esc10."""


def decode_sounds(table: Table, parameters: LogMel) -> Tensor:
    """Decode the sounds of a table into one float32 tensor (N, 1, mels, frames) of decibels, -80 to 0.

    Channels are mixed to one.

    Raises:
        DataError: a sound cannot be decoded or is empty; the message names it.
    """
    batches = [range(start, min(start + BATCH, len(table.data))) for start in range(0, len(table.data), BATCH)]
    spectrograms = []
    for batch in track(batches, len(batches), "decoding sounds"):
        waveforms = [read_sound(table.data[index], table.describe(index), parameters.sample_rate) for index in batch]
        spectrograms.append(prepare_sounds(waveforms, parameters))
    return torch.cat(spectrograms)


def prepare_sounds(waveforms: Sequence[Array], parameters: LogMel) -> Tensor:
    """Mono waveforms (samples,) at ``parameters.sample_rate`` as a network takes them: float32 (N, 1, mels, frames)."""
    samples = round(parameters.duration * parameters.sample_rate)
    return torch.from_numpy(log_mel(np.stack([_centre(wave, samples) for wave in waveforms]), parameters)[:, None])


def log_mel(waveforms: Array, parameters: LogMel) -> Array:
    """Log-mel spectrograms (N, mels, frames), float32, of mono waveforms (N, samples) at ``parameters.sample_rate``.

    In decibels below the loudest value of each, down to -80; silence is -80 throughout. Each is what it is alone, bit
    for bit, whatever the others are.

    >>> import numpy as np
    >>> log_mel(np.zeros((2, 8000), np.float32), LogMel(sample_rate=8000, duration=1.0)).shape
    (2, 64, 16)
    """
    import librosa

    settings = {"sr": parameters.sample_rate, "n_fft": parameters.n_fft, "hop_length": parameters.hop}
    # One by one: in a product of all at once, rounding would depend on how many there are.
    power = np.stack([librosa.feature.melspectrogram(y=y, n_mels=parameters.mels, **settings) for y in waveforms])
    loudest = power.max(axis=(1, 2), keepdims=True)
    relative = np.divide(power, loudest, out=np.zeros_like(power), where=loudest > 0)
    decibels = 10 * np.log10(np.maximum(relative, 10 ** (-DYNAMIC_RANGE / 10)))
    return np.asarray(np.maximum(decibels, -DYNAMIC_RANGE), np.float32)  # float32's logarithm ends just below -80


def _centre(waveform: Array, samples: int) -> Array:
    """Cut or zero-pad to ``samples``, keeping the centre."""
    spare = samples - len(waveform)
    if spare < 0:
        return waveform[-spare // 2 :][:samples]
    return np.pad(waveform, (spare // 2, spare - spare // 2))


def read_sound(data: bytes | Path, name: str, rate: int) -> Array:
    """Decode one sound to a mono waveform (samples,) at a rate in Hz; ``name`` is what an error calls it."""
    return to_mono(*read_channels(data, name), rate)


def read_channels(data: bytes | Path, name: str) -> tuple[Array, str, int]:
    """Decode one sound: (samples, channels), float32, its name again, and its rate in Hz."""
    import soundfile

    blocks: list[Array] = []
    try:
        with soundfile.SoundFile(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as file:
            sample_rate = file.samplerate
            # Block by block: a header may promise terabytes that are not there.
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
                if sum(map(np.size, blocks)) > MOST_VALUES:
                    raise DataError(f"{name}: longer than {MOST_VALUES:,} values; cut the sound")
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: cannot be decoded ({error}); replace or remove it") from None
    channels = np.concatenate(blocks) if blocks else np.empty((0, 1), np.float32)
    check(channels, name)
    return channels, name, sample_rate


def check(channels: Array, name: str) -> None:
    """DataError where there are no values, or values that are not numbers."""
    if not len(channels):
        raise DataError(f"{name}: an empty sound; replace or remove it")
    if not np.isfinite(channels).all():
        raise DataError(f"{name}: holds values that are not numbers; replace or remove it")


def to_mono(channels: Array, name: str, sample_rate: int, rate: int) -> Array:
    """(samples, channels), float32 at ``sample_rate`` Hz, as a mono waveform (samples,) at ``rate`` Hz."""
    import librosa

    waveform = channels.mean(axis=1)
    peak = np.abs(waveform).max()
    if peak > 1e6:  # whose power would pass the largest float32; how loud a sound is does not matter
        waveform = waveform / peak
    return np.asarray(librosa.resample(waveform, orig_sr=sample_rate, target_sr=rate))


def default_log_mel(table: Table) -> LogMel:
    """The commonest rate of the data, at most 22,050 Hz, and the 95th percentile of their durations, at most 10 s."""
    import soundfile

    rates, durations = [], []
    for index, data in enumerate(table.data):
        try:
            info = soundfile.info(io.BytesIO(data) if isinstance(data, bytes) else str(data))
        except (soundfile.SoundFileError, OSError, TypeError) as error:
            raise DataError(f"{table.describe(index)}: cannot be decoded ({error}); replace or remove it") from None
        rates.append(info.samplerate)
        durations.append(info.duration)
    sample_rate = min(Counter(rates).most_common(1)[0][0], 22050)
    # A window of about 50 ms, as in the named data sets.
    n_fft = 2 ** round(math.log2(sample_rate / 20))
    # Rounded up to 10 ms, so that equal sounds of an odd length stay whole.
    duration = min(math.ceil(100 * float(np.quantile(durations, 0.95))) / 100, 10.0)
    return LogMel(sample_rate, duration, n_fft=n_fft, hop=n_fft // 2)
