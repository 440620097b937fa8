-- What a range of one date leaves out of the order of another may lie side by side in it, in front of a page, and be most
-- of all rows. So there is an index for each fortnight of the one date in the order of the other: a page is made of the
-- first few rows of each fortnight of the range. Where the range begins or ends within a fortnight, what it leaves out of
-- that one is passed in the index.
--
-- There the date is compared as a time without a zone: so no index that begins with the date, and has its rows in another
-- order, looks as if it could serve.
DO $$
DECLARE
    pair record;
BEGIN
    FOR pair IN
        WITH dates (name, expression) AS (VALUES
            ('created_at', 'created_at'), ('updated_at', 'updated_at'), ('not_after', '(coalesce(not_after, ''infinity''))')
        )
        SELECT asked.name AS asked, asked.expression AS range, sort.name AS sort, sort.expression AS "order"
          FROM dates asked JOIN dates sort ON sort.name <> asked.name
    LOOP
        EXECUTE format(
            'CREATE INDEX %1$I ON certificates
             (date_bin(''336 hours'', %2$s, ''2000-01-03Z''), %3$s, id, (%2$s AT TIME ZONE ''UTC'')) INCLUDE (%4$s)',
            format('certificates_by_fortnight_%s_by_%s', pair.asked, pair.sort), pair.range, pair."order",
            concat_ws(', ', pair.asked, CASE WHEN pair.sort = 'not_after' THEN pair.sort END));
    END LOOP;
END
$$;
