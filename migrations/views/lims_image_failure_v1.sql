-- Images that were given up: what could not be read or scored, by which model version, and why.
create view lims_image_failure_v1 as
select
    job.id as failure_id,
    source.name as source,
    source.layout as layout,
    plate.key as plate_key,
    plate.barcode as barcode,
    inspection.key as inspection_key,
    inspection.ordinal as inspection_ordinal,
    "drop".well as well,
    "drop".well_row as well_row,
    "drop".well_column as well_column,
    "drop".drop_number as drop_number,
    image.id as image_id,
    image.path as path,
    image.modality as modality,
    model_version.name as model,
    model_version.version as model_version,
    job.attempts as attempts,
    job.error as error,
    job.failed_at as failed_at
from job
join image on image.id = job.image_id
join "drop" on "drop".id = image.drop_id
join inspection on inspection.id = image.inspection_id
join plate on plate.id = inspection.plate_id
join source on source.id = plate.source_id
join model_version on model_version.id = job.model_version_id
where job.failed_at is not null
