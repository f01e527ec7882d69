-- Internal. The versions shown in the views: the champion and the former ones, with their rank.
create view shown_version as
select
    model_version.id as model_version_id,
    model_version.promoted_at as promoted_at,
    exists (
        select 1
        from model_alias
        where model_alias.alias = 'champion' and model_alias.model_version_id = model_version.id
    ) as is_champion
from model_version
where model_version.promoted_at is not null
