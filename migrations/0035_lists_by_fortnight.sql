-- What a range of one date leaves out of the order of another may lie side by side in it, in front of a page, and be most
-- of all rows. So there is an index for each fortnight of the one date in the order of the other: a page is made of the
-- first few rows of each fortnight of the range. Where the range begins or ends within a fortnight, what it leaves out of
-- that one is passed in the index.
--
-- There the date is compared as a time without a zone: so no index that begins with the date, and has its rows in another
-- order, looks as if it could serve.
DO $$
DECLARE
    asked record;
    sort record;
BEGIN
    CREATE TEMPORARY TABLE dates (name, expression) ON COMMIT DROP AS VALUES
        ('created_at', 'created_at'), ('updated_at', 'updated_at'), ('not_after', '(coalesce(not_after, ''infinity''))');
    FOR asked IN SELECT * FROM dates LOOP
        FOR sort IN SELECT * FROM dates WHERE name <> asked.name LOOP
            EXECUTE format(
                'CREATE INDEX %1$I ON certificates
                 (date_bin(''336 hours'', %2$s, ''2000-01-03Z''), %3$s, id, (%2$s AT TIME ZONE ''UTC'')) INCLUDE (%4$s)',
                format('certificates_by_fortnight_%s_by_%s', asked.name, sort.name), asked.expression, sort.expression,
                concat_ws(', ', asked.name, CASE WHEN sort.name = 'not_after' THEN sort.name END));
        END LOOP;
    END LOOP;
END
$$;
