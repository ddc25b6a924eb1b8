from saved import (  # noqa: F401  fixtures
    ann,
    ann_checkpoint,
    checkpoint,
    dataset,
    edit,
    put_weights,
    reports,
    saved,
    snn,
)
