<?php
// A blog: each post writes a row and a file.  It connects to its database for each request.
mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
$path = $_SERVER['REQUEST_URI'];
try {
    $database = new mysqli(
        $_SERVER['DATABASE_HOST'],
        'blog',
        'a password',
        'blog',
        (int) $_SERVER['DATABASE_PORT']
    );
    if ($_SERVER['REQUEST_METHOD'] === 'POST') {
        $number = (int) substr($path, 1);
        $database->begin_transaction();
        $database->execute_query('INSERT INTO posts (number) VALUES (?)', [$number]);
        $file = fopen(__DIR__ . "/posts/$number", 'x');
        if (!$file || !fwrite($file, "post $number\n") || !fsync($file) || !fclose($file)) {
            throw new Exception("no file for post $number");
        }
        $database->commit();
        http_response_code(201);
        echo "posted $number\n";
    } else {
        echo $database->query('SELECT count(*) FROM posts')->fetch_row()[0], " posts\n";
    }
    $database->close();
} catch (Throwable $problem) {
    error_log($problem);
    http_response_code(500);
    echo $problem->getMessage(), "\n";
}
